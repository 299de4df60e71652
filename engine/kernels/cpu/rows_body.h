// The verbs that take one row at a time.
#pragma once

namespace millrace {
namespace {

void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out) {
  Vec squares{};
  for_vecs(n, [&](int64_t i, int part) {
    const Vec v = load_part(x + i, part);
    squares = vec_fma(v, v, squares);
  });
  const float mean = vec_sum_of(squares) / static_cast<float>(n);
  const Vec factor = vec_set(1.0f / __builtin_sqrtf(mean + eps));
  for_vecs(n, [&](int64_t i, int part) {
    const Vec v = load_part(x + i, part) * factor;
    store_part(out + i, v * load_part(weight + i, part), part);
  });
}

void add(float* x, const float* y, int64_t n) {
  for_vecs(n, [&](int64_t i, int part) {
    store_part(x + i, load_part(x + i, part) + load_part(y + i, part), part);
  });
}

// Both activations are g * sigmoid(u): u = g of silu, and of gelu u = 2 sqrt(2/pi) (g + c g^3),
// since (1 + tanh(z)) / 2 = sigmoid(2 z).
void gate_mul(const float* gate, const float* up, int64_t n, bool gelu, float* out) {
  for_vecs(n, [&](int64_t i, int part) {
    const Vec g = load_part(gate + i, part);
    const Vec u = gelu ? 1.5957691216f * vec_fma(g * g * g, vec_set(0.044715f), g) : g;
    const Vec gated = g / (1.0f + vec_exp(Vec{} - u));
    store_part(out + i, gated * load_part(up + i, part), part);
  });
}

void soft_cap(float* x, int64_t n, float cap) {
  for_vecs(n, [&](int64_t i, int part) {
    const Vec scaled = load_part(x + i, part) * vec_set(1 / cap);
    store_part(x + i, vec_tanh(scaled) * vec_set(cap), part);
  });
}

void rope(const float* in, const float* cos_sin, int32_t n, bool interleaved, float* out) {
  const int32_t half = n / 2;
  const float* cosines = cos_sin;
  const float* sines = cos_sin + half;
  for (int32_t i = 0; i < half; ++i) {
    const int32_t first = interleaved ? 2 * i : i;
    const int32_t second = interleaved ? 2 * i + 1 : i + half;
    const float a = in[first];
    const float b = in[second];
    out[first] = a * cosines[i] - b * sines[i];
    out[second] = b * cosines[i] + a * sines[i];
  }
}

bool finite_max(const float* x, int64_t n, float* max) {
  Vec largest = vec_set(x[0]);
  Vec poison = vec_set(0);  // 0 * x is 0, or NaN when x is not finite
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    const Vec v = vec_load(x + i);
    largest = vec_max(largest, v);
    poison = vec_fma(v, vec_set(0), poison);
  }
  float result = vec_max_of(largest);
  float rest = vec_sum_of(poison);
  for (; i < n; ++i) {
    result = x[i] > result ? x[i] : result;
    rest += x[i] * 0.0f;
  }
  *max = result;
  return rest == 0;
}

double scaled_exp(const float* x, int64_t n, float max, float factor, float* y, float* w) {
  constexpr int64_t kPiece = 1024;  // summed in fp32; the pieces in double
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kPiece) {
    Vec sum{};
    for_vecs(min_of(kPiece, n - begin), [&](int64_t offset, int part) {
      const int64_t i = begin + offset;
      const Vec shifted = (load_part(x + i, part) - vec_set(max)) * vec_set(factor);
      const Vec scaled = vec_max(vec_set(-1e30f), shifted);
      const Vec e = vec_exp(scaled);
      if (y != nullptr) store_part(y + i, scaled, part);
      if (w != nullptr) store_part(w + i, e, part);
      if (part == kWidth) {
        sum = sum + e;
      } else {
        float last[kWidth] = {};
        vec_store_n(last, e, part);
        sum = sum + vec_load(last);
      }
    });
    total += vec_sum_of(sum);
  }
  return total;
}

}  // namespace
}  // namespace millrace
