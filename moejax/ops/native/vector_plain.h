// What vector_any.h needs, on any CPU: a fused product would be a call of a function, so products are rounded before they
// are added, and Float16 is converted by integers, because a CPU that counts denormals as 0 loses none of its numbers so.
#pragma once

#include "vector_any.h"

namespace moejax {

constexpr int kRegisters = 16;

inline Floats multiply_add(Floats a, Floats b, Floats c) { return a * b + c; }
inline float multiply_add(float a, float b, float c) { return a * b + c; }
inline Floats maximum(Floats a, Floats b) { return a > b ? a : b; }  // b where one of them is NaN

// The sums of the lanes of four vectors, in a fixed tree.
inline Floats sums(Floats a, Floats b, Floats c, Floats d) {
  return Floats{a[0], b[0], c[0], d[0]} + Floats{a[1], b[1], c[1], d[1]} +
         (Floats{a[2], b[2], c[2], d[2]} + Floats{a[3], b[3], c[3], d[3]});
}

inline Floats widen_float16(Halves halves) {
  typedef int32_t Ints __attribute__((vector_size(16)));  // which every x86-64 CPU compares and makes floats of
  const Ints bits = __builtin_convertvector(halves, Ints), rest = bits & 0x7FFF;
  const Ints bias = Ints{} + (112 << 23);
  const Ints normal = (rest << 13) + bias + (bias & (rest >= 0x7C00));  // infinity and NaN keep the highest exponent
  const Ints small = (Ints)(__builtin_convertvector(rest, Floats) * 0x1p-24f);
  const Ints is_small = rest < 0x400;
  return (Floats)((small & is_small) | (normal & ~is_small) | (bits & 0x8000) << 16);
}
inline float widen_one(Float16 a) { return widen_float16(Halves{a.bits})[0]; }

inline void narrow(float a, Float16* result) {
  const uint32_t bits = float_to_bits(a) & 0x7FFFFFFF, sign = (float_to_bits(a) >> 16) & 0x8000;
  // Below 2^-14, Float16's numbers are 2^-24 apart, which is what a sum with 0.5 is rounded to.
  const uint32_t small = float_to_bits(bits_to_float(bits) + 0.5f) - float_to_bits(0.5f);
  const uint32_t normal = (bits - (112u << 23) + 0xFFF + ((bits >> 13) & 1)) >> 13;
  const uint32_t rounded = bits < 113u << 23 ? small : bits < 143u << 23 ? normal : 0x7C00;
  result->bits = sign | (a == a ? rounded : 0x7E00);
}

}  // namespace moejax

#include "vector_pairs.h"
