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
  constexpr int64_t kSquare = 16;  // units; in squares, so that rows whose distance is a power of 2 do not evict one another
  const int64_t units = (inputs + together - 1) / together;
  for (int64_t strip = 0; strip < outputs; strip += width, packed += units * width) {
    for (int64_t k = 0; k < units; k += kSquare) {
      const int64_t some = std::min(kSquare, units - k);
      const int64_t bytes = std::min<int64_t>(some * sizeof(Unit), (inputs - k * together) * size);
      for (int64_t lane = 0; lane < width; lane += kSquare) {
        Unit square[kSquare][kSquare] = {};
        for (int64_t i = 0; i < std::min(kSquare, outputs - strip - lane); i++) {
          std::memcpy(square[i], rows + ((strip + lane + i) * inputs + k * together) * size, bytes);
        }
        for (int64_t j = 0; j < some; j++) {
          Unit* to = packed + (k + j) * width + lane;
          for (int64_t i = 0; i < kSquare; i++) to[i] = square[i][j];
        }
      }
    }
  }
}

}  // namespace moejax
