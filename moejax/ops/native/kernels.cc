// The functions that XLA calls, and the one that loading calls. Shapes are checked where Python traces the call; ids are values, and checked here.
#include <string>

#include "attention_blocks.h"
#include "experts.h"
#include "linear.h"
#include "pack.h"
#include "read.h"
#include "rows.h"
#include "zeros.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace moejax {

// body(T()) with the T of `dtype`.
template <typename Body>
ffi::Error with_dtype(ffi::DataType dtype, Body body) {
  switch (dtype) {
    case ffi::F32:
      return body(float());
    case ffi::F16:
      return body(Float16());
    case ffi::BF16:
      return body(BFloat16());
    default:
      return ffi::Error::InvalidArgument("moejax's CPU kernels compute in float32, float16 or bfloat16 only");
  }
}

template <typename T>
const T* elements(const ffi::AnyBuffer& buffer) {
  return static_cast<const T*>(buffer.untyped_data());
}

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

// q [B, K, G, T, H], k and v [B, K, S, H], both as bits where they are 16 bits wide, starts [B] -> float32 as q.
ffi::Error attend_call(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v,
                       ffi::BufferR1<ffi::S32> starts, ffi::Result<ffi::AnyBuffer> y, int64_t window) {
  return with_dtype(q.element_type(), [&](auto zero) -> ffi::Error {
    using T = decltype(zero);
    auto shape = q.dimensions();
    AttentionCall<T> call{shape[0],          shape[1],
                          shape[2],          shape[3],
                          k.dimensions()[2], shape[4],
                          window,            elements<T>(q),
                          elements<T>(k),    elements<T>(v),
                          starts.typed_data(), static_cast<float*>(y->untyped_data())};
    attend(pool, call);
    return ffi::Error::Success();
  });
}

// -> results of any shapes and dtypes.
ffi::Error zeros_call(ffi::ThreadPool pool, ffi::RemainingRets results) {
  std::vector<Bytes> memory;
  for (size_t i = 0; i < results.size(); i++) {
    auto result = results.get<ffi::AnyBuffer>(i);
    if (!result.has_value()) return result.error();
    memory.push_back({static_cast<char*>((*result)->untyped_data()), static_cast<int64_t>((*result)->size_bytes())});
  }
  zero(pool, memory);
  return ffi::Error::Success();
}

// numbers [N] -> the sums of blocks of them.
ffi::Error read_call(ffi::ThreadPool pool, ffi::BufferR1<ffi::F32> numbers, ffi::Result<ffi::BufferR1<ffi::F32>> sums) {
  read_memory(pool, numbers.typed_data(), numbers.dimensions()[0], sums->typed_data());
  return ffi::Error::Success();
}

// x [T, D] and scale [D] -> as x.
ffi::Error norm_call(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer scale, ffi::Result<ffi::AnyBuffer> y, float eps) {
  return with_dtype(x.element_type(), [&](auto zero) -> ffi::Error {
    using T = decltype(zero);
    rms_norm<T>(pool, elements<T>(x), elements<T>(scale), x.dimensions()[0], x.dimensions()[1], eps,
                static_cast<T*>(y->untyped_data()));
    return ffi::Error::Success();
  });
}

// logits [T, E] and valid [T] -> ids [T, A] and weights [T, A].
ffi::Error route_call(ffi::BufferR2<ffi::F32> logits, ffi::BufferR1<ffi::PRED> valid,
                      ffi::Result<ffi::BufferR2<ffi::S32>> ids, ffi::Result<ffi::BufferR2<ffi::F32>> weights,
                      bool renormalise, float scale) {
  FlushDenormals flush;
  route(logits.typed_data(), valid.typed_data(), logits.dimensions()[0], logits.dimensions()[1], ids->dimensions()[1],
        renormalise, scale, ids->typed_data(), weights->typed_data());
  return ffi::Error::Success();
}

// q [B, T, N, H], k and v [B, T, K, H], cosines and sines [B, T, H / 2], starts [B], caches [B, K, S, H] (as bits where
// they are 16 bits wide) -> q [B, N, T, H], and the caches, which XLA keeps in their place.
ffi::Error rotate_call(ffi::ThreadPool pool, ffi::BufferR4<ffi::F32> q, ffi::BufferR4<ffi::F32> k,
                       ffi::BufferR4<ffi::F32> v, ffi::BufferR3<ffi::F32> cos, ffi::BufferR3<ffi::F32> sin,
                       ffi::BufferR1<ffi::S32> starts, ffi::AnyBuffer k_cache, ffi::AnyBuffer v_cache,
                       ffi::Result<ffi::AnyBuffer> rotated, ffi::Result<ffi::AnyBuffer> k_result,
                       ffi::Result<ffi::AnyBuffer> v_result) {
  if (k_result->untyped_data() != k_cache.untyped_data() || v_result->untyped_data() != v_cache.untyped_data()) {
    return ffi::Error::Internal("XLA moved a key/value cache that moejax's CPU kernels write in place");
  }
  return with_dtype(rotated->element_type(), [&](auto zero) -> ffi::Error {
    using T = decltype(zero);
    auto shape = q.dimensions();
    RotateCall<T> call{shape[0],
                       shape[1],
                       shape[2],
                       k.dimensions()[2],
                       k_cache.dimensions()[2],
                       shape[3],
                       q.typed_data(),
                       k.typed_data(),
                       v.typed_data(),
                       cos.typed_data(),
                       sin.typed_data(),
                       starts.typed_data(),
                       static_cast<T*>(rotated->untyped_data()),
                       static_cast<T*>(k_result->untyped_data()),
                       static_cast<T*>(v_result->untyped_data())};
    rotate_into_cache(pool, call);
    return ffi::Error::Success();
  });
}

}  // namespace moejax

XLA_FFI_DEFINE_HANDLER_SYMBOL(moejax_linear, moejax::linear_call,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<ffi::AnyBuffer>().RemainingArgs().RemainingRets());

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

XLA_FFI_DEFINE_HANDLER_SYMBOL(moejax_attend, moejax::attend_call,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::BufferR1<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int64_t>("window"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(moejax_zeros, moejax::zeros_call, ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    moejax_read, moejax::read_call,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<ffi::BufferR1<ffi::F32>>().Ret<ffi::BufferR1<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(moejax_norm, moejax::norm_call,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<float>("eps"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(moejax_route, moejax::route_call,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Arg<ffi::BufferR1<ffi::PRED>>()
                                  .Ret<ffi::BufferR2<ffi::S32>>()
                                  .Ret<ffi::BufferR2<ffi::F32>>()
                                  .Attr<bool>("renormalise")
                                  .Attr<float>("scale"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(moejax_rotate, moejax::rotate_call,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::BufferR4<ffi::F32>>()
                                  .Arg<ffi::BufferR4<ffi::F32>>()
                                  .Arg<ffi::BufferR4<ffi::F32>>()
                                  .Arg<ffi::BufferR3<ffi::F32>>()
                                  .Arg<ffi::BufferR3<ffi::F32>>()
                                  .Arg<ffi::BufferR1<ffi::S32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());

// Rows [outputs, inputs] of elements of `size` bytes to strips of `width` outputs, `together` elements side by side.
extern "C" void moejax_pack(const void* rows, int64_t outputs, int64_t inputs, int64_t size, int64_t together, int64_t width,
                            void* packed) {
  const char* from = static_cast<const char*>(rows);
  if (size * together == 4) {
    moejax::pack_rows(from, outputs, inputs, size, together, width, static_cast<uint32_t*>(packed));
  } else {
    moejax::pack_rows(from, outputs, inputs, size, together, width, static_cast<uint16_t*>(packed));
  }
}
