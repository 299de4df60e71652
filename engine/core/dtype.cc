#include "engine/core/dtype.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "engine/base/check.h"

namespace millrace {

void narrow(std::span<const float> from, DType to, uint8_t* out) {
  if (to == DType::kF32) {
    std::memcpy(out, from.data(), from.size_bytes());
    return;
  }
  CHECK(to == DType::kF16 || to == DType::kBF16, "numbers as {}", dtype_info(to).name);
  for (size_t i = 0; i < from.size(); ++i) {
    uint16_t bits = 0;
    if (to == DType::kF16) {
      bits = std::bit_cast<uint16_t>(static_cast<Half>(from[i]));
    } else {  // the upper half
      const auto wide = std::bit_cast<uint32_t>(from[i]);
      bits = static_cast<uint16_t>(
          std::isnan(from[i]) ? wide >> 16 | 0x40 : (wide + 0x7fff + (wide >> 16 & 1)) >> 16);
    }
    std::memcpy(out + i * 2, &bits, 2);
  }
}

}  // namespace millrace
