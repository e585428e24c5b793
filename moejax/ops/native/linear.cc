// XLA calls products here.
#include "linear.h"
#include "calls.h"

namespace moejax {

// x [T, D] and packed weights [O_i, D] -> float32 [T, O_i] each.
ffi::Error linear_call(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::RemainingArgs weights, ffi::RemainingRets results) {
  return with_dtype(x.element_type(), [&](auto zero) -> ffi::Error {
    using T = decltype(zero);
    std::vector<LinearPart<T>> parts;
    for (size_t i = 0; i < weights.size(); i++) {
      auto w = weights.get<ffi::AnyBuffer>(i);
      auto y = results.get<ffi::BufferR2<ffi::F32>>(i);
      if (!w.has_value()) return w.error();
      if (!y.has_value()) return y.error();
      parts.push_back({{elements<T>(*w), (*y)->dimensions()[1], x.dimensions()[1]}, (*y)->typed_data()});
    }
    linear<T>(pool, elements<T>(x), x.dimensions()[0], x.dimensions()[1], parts);
    return ffi::Error::Success();
  });
}

}  // namespace moejax

XLA_FFI_DEFINE_HANDLER_SYMBOL(moejax_linear, moejax::linear_call,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<ffi::AnyBuffer>().RemainingArgs().RemainingRets());
