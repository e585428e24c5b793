// XLA calls experts here.
#include <string>

#include "experts.h"
#include "calls.h"

namespace moejax {

// x [T, D], ids [T, A], weights [T, A], packed gate and up E [F, D], down E [D, F] -> float32 [T, D], and two workspaces.
ffi::Error experts_call(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::BufferR2<ffi::S32> ids,
                        ffi::BufferR2<ffi::F32> weights, ffi::AnyBuffer gate, ffi::AnyBuffer up, ffi::AnyBuffer down,
                        ffi::Result<ffi::BufferR2<ffi::F32>> y, ffi::Result<ffi::AnyBuffer> hidden,
                        ffi::Result<ffi::BufferR2<ffi::F32>> results) {
  const int32_t experts = gate.dimensions()[0];
  for (size_t row = 0; row < ids.element_count(); row++) {
    if (ids.typed_data()[row] < 0 || ids.typed_data()[row] > experts) {
      return ffi::Error::InvalidArgument("got expert id " + std::to_string(ids.typed_data()[row]) + ", expected 0 to " +
                                         std::to_string(experts) + ", where the last one is none");
    }
  }
  return with_dtype(x.element_type(), [&](auto zero) -> ffi::Error {
    using T = decltype(zero);
    const int64_t d = x.dimensions()[1], f = hidden->dimensions()[1];
    ExpertsCall<T> call{x.dimensions()[0],
                        d,
                        f,
                        ids.dimensions()[1],
                        experts,
                        elements<T>(x),
                        ids.typed_data(),
                        weights.typed_data(),
                        {elements<T>(gate), f, d},
                        {elements<T>(up), f, d},
                        {elements<T>(down), d, f},
                        static_cast<T*>(hidden->untyped_data()),
                        results->typed_data(),
                        y->typed_data()};
    run_experts(pool, call);
    return ffi::Error::Success();
  });
}

}  // namespace moejax

XLA_FFI_DEFINE_HANDLER_SYMBOL(moejax_experts, moejax::experts_call,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::BufferR2<ffi::S32>>()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::BufferR2<ffi::F32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::BufferR2<ffi::F32>>());
