#include "launch/bench/workload.h"

#include <algorithm>
#include <boost/json/object.hpp>
#include <cmath>
#include <numbers>
#include <sstream>

#include "engine/base/file.h"
#include "engine/base/hash.h"
#include "engine/base/strict_json.h"

namespace millrace {

namespace {

constexpr uint64_t kMaxTraceBytes = uint64_t{1} << 30;
constexpr double kMaxSeconds = 1e9;

// Our own draws: the standard library's distributions differ between its versions.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(mix64(seed)) {}
  // In (0, 1].
  double uniform() {
    state_ = mix64(state_);
    return static_cast<double>((state_ >> 11) + 1) * 0x1p-53;
  }
  double exponential() { return -std::log(uniform()); }
  double normal() {  // Box and Muller 1958
    const double radius = std::sqrt(-2 * std::log(uniform()));
    return radius * std::cos(2 * std::numbers::pi * uniform());
  }
  double gamma(double shape) {  // of scale 1: Marsaglia and Tsang 2000
    if (shape < 1) return gamma(shape + 1) * std::pow(uniform(), 1 / shape);
    const double d = shape - 1.0 / 3, c = 1 / std::sqrt(9 * d);
    for (;;) {
      const double x = normal(), v = std::pow(1 + c * x, 3);
      if (v > 0 && std::log(uniform()) < x * x / 2 + d - d * v + d * std::log(v)) return d * v;
    }
  }

 private:
  uint64_t state_;
};

int32_t draw_length(Random& random, double mean, double variation, int32_t max) {
  const double sigma2 = std::log1p(variation * variation);
  const double length = mean * std::exp(std::sqrt(sigma2) * random.normal() - sigma2 / 2);
  return static_cast<int32_t>(std::clamp(std::round(length), 1.0, static_cast<double>(max)));
}

double take(const boost::json::object& line, const char* key, double min, double max) {
  const boost::json::value* value = line.if_contains(key);
  const bool whole = min == 1;
  if (value == nullptr) throw JsonError(std::string(key) + " is missing");
  if (!value->is_number() || (whole && !value->is_int64())) {
    throw JsonError(std::string(key) + (whole ? " is no whole number" : " is no number"));
  }
  const double number = value->to_number<double>();
  if (!(number >= min && number <= max)) {
    throw JsonError(fmt::format("{} is {}, not from {} to {}", key, number, min, max));
  }
  return number;
}

Arrival parse_arrival(const std::string& text, int32_t max_tokens) {
  const boost::json::value line = parse_strict_json(text, {});
  if (!line.is_object()) throw JsonError("not a JSON object");
  const auto& object = line.as_object();
  Arrival arrival;
  arrival.at_s = take(object, "arrival_s", 0, kMaxSeconds);
  arrival.prompt_tokens = static_cast<int32_t>(take(object, "prompt_tokens", 1, max_tokens - 1));
  arrival.output_tokens = static_cast<int32_t>(take(object, "output_tokens", 1, max_tokens - 1));
  if (arrival.prompt_tokens > max_tokens - arrival.output_tokens) {
    throw JsonError(
        fmt::format("prompt_tokens and output_tokens together exceed the context of {}; leave the "
                    "request out, or raise --max-model-len",
            max_tokens));
  }
  return arrival;
}

}  // namespace

std::vector<Arrival> draw_lengths(
    const LengthConfig& lengths, int32_t count, int32_t max_tokens, uint64_t seed) {
  Random random(seed);
  std::vector<Arrival> arrivals(static_cast<size_t>(count));
  for (Arrival& arrival : arrivals) {
    const double variation = lengths.variation;
    arrival.prompt_tokens = draw_length(random, lengths.prompt_mean, variation, max_tokens - 1);
    arrival.output_tokens =
        draw_length(random, lengths.output_mean, variation, max_tokens - arrival.prompt_tokens);
  }
  return arrivals;
}

std::vector<Arrival> draw_even_lengths(
    int32_t prompt_mean, int32_t output_mean, double ratio, int32_t count, uint64_t seed) {
  Random random(seed);
  const auto draw = [&](double mean) {
    const double low = std::max(1.0, std::floor(mean * (1 - ratio)));
    const double span = std::ceil(mean * (1 + ratio)) - low + 1;
    return static_cast<int32_t>(low + std::ceil(random.uniform() * span) - 1);
  };
  std::vector<Arrival> arrivals(static_cast<size_t>(count));
  for (Arrival& arrival : arrivals) {
    arrival.prompt_tokens = draw(prompt_mean);
    arrival.output_tokens = draw(output_mean);
  }
  return arrivals;
}

void draw_times(std::vector<Arrival>& arrivals, double rate, uint64_t seed, double burstiness) {
  Random random(seed + 1);  // not the numbers that made the lengths
  double now = 0;
  for (Arrival& arrival : arrivals) {
    const double gap =
        burstiness == 1 ? random.exponential() : random.gamma(burstiness) / burstiness;
    arrival.at_s = now += gap / rate;
  }
}

std::vector<Arrival> read_trace(const std::string& path, int32_t max_tokens) {
  std::istringstream in(read_file(path, kMaxTraceBytes, ExitCode::kInput));
  std::vector<Arrival> arrivals;
  int64_t number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    try {
      arrivals.push_back(parse_arrival(line, max_tokens));
    } catch (const JsonError& error) {
      throw Error(ExitCode::kInput, "{} line {}: {}", path, number, error.what());
    }
  }
  if (arrivals.empty()) throw Error(ExitCode::kInput, "{}: holds no request", path);
  std::ranges::stable_sort(arrivals, {}, &Arrival::at_s);
  return arrivals;
}

}  // namespace millrace
