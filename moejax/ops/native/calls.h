// What every function that XLA calls needs. Shapes are checked where Python traces the call; ids are values, and checked
// where they are used.
#pragma once

#include "vector.h"
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

}  // namespace moejax
