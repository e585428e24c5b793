// XLA calls here what takes tokens one by one: norms, routing, rotation.
#include "rows.h"
#include "calls.h"

namespace moejax {

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
