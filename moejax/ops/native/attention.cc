// XLA calls attention here.
#include "attention_blocks.h"
#include "calls.h"

namespace moejax {

// q [B, K, G, T, H], k and v [B, K, S, H], both as bits where they are 16 bits wide, starts [B], sinks [K, G] or none
// -> float32 as q.
ffi::Error attend_call(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v,
                       ffi::BufferR1<ffi::S32> starts, ffi::BufferR2<ffi::F32> sinks, ffi::Result<ffi::AnyBuffer> y,
                       int64_t window, float scale, float soft_cap) {
  return with_dtype(q.element_type(), [&](auto zero) -> ffi::Error {
    using T = decltype(zero);
    auto shape = q.dimensions();
    AttentionCall<T> call{shape[0],          shape[1],
                          shape[2],          shape[3],
                          k.dimensions()[2], shape[4],
                          window,            scale,
                          soft_cap,          elements<T>(q),
                          elements<T>(k),    elements<T>(v),
                          starts.typed_data(), sinks.element_count() ? sinks.typed_data() : nullptr,
                          static_cast<float*>(y->untyped_data())};
    attend(pool, call);
    return ffi::Error::Success();
  });
}

}  // namespace moejax

XLA_FFI_DEFINE_HANDLER_SYMBOL(moejax_attend, moejax::attend_call,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::BufferR1<ffi::S32>>()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int64_t>("window")
                                  .Attr<float>("scale")
                                  .Attr<float>("soft_cap"));
