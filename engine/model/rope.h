// Formulas of rotary scaling that both readers need. Pure.
#pragma once

#include <algorithm>
#include <cmath>

namespace millrace {

// YaRN's attention magnitude for a context stretched `factor` times.
inline double yarn_magnitude(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

}  // namespace millrace
