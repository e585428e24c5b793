// From rows as checkpoints have them to strips (`strips.h`): what loading does with every weight that is multiplied.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace moejax {

// `Unit`: what lies side by side, of `together` elements. Rows [outputs, inputs] of elements of `size` bytes become strips
// of `width` outputs; `packed` is written once, in order.
template <typename Unit>
void pack_rows(const char* rows, int64_t outputs, int64_t inputs, int64_t size, int64_t together, int64_t width, Unit* packed) {
  // In squares of units, so that rows whose distance is a power of 2 do not evict one another, and along so many rows as
  // the CPU sees coming.
  constexpr int64_t kSquare = 16;
  const int64_t units = (inputs + together - 1) / together;
  for (int64_t strip = 0; strip < outputs; strip += width, packed += units * width) {
    for (int64_t lane = 0; lane < width; lane += kSquare) {
      const int64_t rows_here = std::min(kSquare, outputs - strip - lane);
      for (int64_t k = 0; k < units; k += kSquare) {
        const int64_t some = std::min(kSquare, units - k);
        const int64_t bytes = std::min<int64_t>(some * sizeof(Unit), (inputs - k * together) * size);
        Unit square[kSquare][kSquare] = {};
        for (int64_t i = 0; i < rows_here; i++) {
          std::memcpy(square[i], rows + ((strip + lane + i) * inputs + k * together) * size, bytes);
        }
        for (int64_t j = 0; j < some; j++) {
          for (int64_t i = 0; i < kSquare; i++) packed[(k + j) * width + lane + i] = square[i][j];
        }
      }
    }
  }
}

}  // namespace moejax
