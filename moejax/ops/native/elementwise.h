// Exponentials and the gated activation, written so that a compiler vectorises the loops.
#pragma once

#include <cmath>

#include "vector.h"

namespace moejax {

// e^a for a <= 0, 0 below the smallest normal number; NaN stays NaN. Relative error below 2e-7: the reduction of Cody
// and Waite to |r| <= ln(2) / 2, and the Taylor series of degree 7.
inline float exp_negative(float a) {
  constexpr float kRound = 12582912.0f;  // 1.5 x 2^23: adding it rounds to an integer, which its low bits then hold
  float clamped = a < -87.33f ? -87.33f : a;
  float shifted = multiply_add(clamped, 1.44269504f, kRound);
  float n = shifted - kRound;
  float r = multiply_add(n, -0.693145752f, clamped);
  r = multiply_add(n, -1.42860677e-6f, r);
  float p = 1.0f / 5040.0f;
  p = multiply_add(p, r, 1.0f / 720.0f);
  p = multiply_add(p, r, 1.0f / 120.0f);
  p = multiply_add(p, r, 1.0f / 24.0f);
  p = multiply_add(p, r, 1.0f / 6.0f);
  p = multiply_add(p, r, 0.5f);
  p = multiply_add(p, r, 1.0f);
  p = multiply_add(p, r, 1.0f);
  float scale = bits_to_float((float_to_bits(shifted) << 23) + 0x3F800000u);
  return a < -87.33f ? 0.0f : p * scale;
}

// The hyperbolic tangent, to a relative error of about 1e-6 where |a| is above 1e-3, and else to an absolute one of 1e-7.
inline float tanh_of(float a) {
  const float e = exp_negative(-2.0f * std::fabs(a));
  return std::copysign((1.0f - e) / (1.0f + e), a);
}

// The same to 6e-5, a thirtieth of what bfloat16 can tell: one step of reduction and a series of degree 4.
inline float exp_negative_to_bfloat16(float a) {
  constexpr float kRound = 12582912.0f;
  float power = (a < -87.33f ? -87.33f : a) * 1.44269504f;
  float shifted = power + kRound;
  float r = power - (shifted - kRound);
  float p = 0.00961813f;
  p = multiply_add(p, r, 0.05550411f);
  p = multiply_add(p, r, 0.24022651f);
  p = multiply_add(p, r, 0.69314718f);
  p = multiply_add(p, r, 1.0f);
  float scale = bits_to_float((float_to_bits(shifted) << 23) + 0x3F800000u);
  return a < -87.33f ? 0.0f : p * scale;
}

// a / (1 + e^-a) without overflow.
inline float silu(float a) {
  float e = exp_negative(-std::fabs(a));
  return (a < 0.0f ? a * e : a) / (1.0f + e);
}

// hidden[i] = silu(gate[i]) * up[i], in the dtype of `hidden`.
template <typename T>
inline void gated(const float* gate, const float* up, int64_t count, T* hidden) {
  for (int64_t i = 0; i < count; i++) narrow(silu(gate[i]) * up[i], hidden + i);
}

}  // namespace moejax
