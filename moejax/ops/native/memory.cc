// XLA calls here what only reads or clears memory; loading packs weights.
#include "pack.h"
#include "read.h"
#include "zeros.h"
#include "calls.h"

namespace moejax {

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

}  // namespace moejax

XLA_FFI_DEFINE_HANDLER_SYMBOL(moejax_zeros, moejax::zeros_call, ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    moejax_read, moejax::read_call,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<ffi::BufferR1<ffi::F32>>().Ret<ffi::BufferR1<ffi::F32>>());

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
