// What a CPU has beside arithmetic: a short wait, and what becomes of numbers too small for a normal float32.
#pragma once

#include <cstdint>

#if !defined(__aarch64__)
#include <xmmintrin.h>
#endif

namespace moejax {

#if defined(__aarch64__)

inline void wait_briefly() { asm volatile("isb" ::: "memory"); }  // `yield` does nothing on most cores

using FloatControl = uint64_t;                      // FPCR
constexpr FloatControl kFlush = uint64_t{1} << 24;  // FZ. FZ16 is for sums in half precision, of which there are none.
inline FloatControl float_control() {
  FloatControl value;
  asm volatile("mrs %0, fpcr" : "=r"(value) : : "memory");
  return value;
}
inline void set_float_control(FloatControl value) { asm volatile("msr fpcr, %0" : : "r"(value) : "memory"); }

#else

inline void wait_briefly() { _mm_pause(); }

using FloatControl = uint32_t;             // MXCSR
constexpr FloatControl kFlush = 0x8040;    // FTZ and DAZ
inline FloatControl float_control() { return _mm_getcsr(); }
inline void set_float_control(FloatControl value) { _mm_setcsr(value); }

#endif

// Numbers too small for a normal float32 count as 0, on every thread alike, as XLA has it on its own.
class FlushDenormals {
 public:
  FlushDenormals() : before_(float_control()) { set_float_control(before_ | kFlush); }
  ~FlushDenormals() { set_float_control(before_); }

 private:
  FloatControl before_;
};

}  // namespace moejax
