// The rope table against transformers (tests/data/goldens/rope.json, scripts/make_goldens.py).
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>

#include "engine/model/config.h"
#include "tests/engine/model/files.h"

namespace millrace {
namespace {

namespace json = boost::json;

TEST(Rope, EveryKindEqualsTransformers) {
  const json::value goldens = json::parse(read_all("tests/data/goldens/rope.json"));
  ASSERT_GE(goldens.at("cases").as_array().size(), 8u);
  for (const json::value& c : goldens.at("cases").as_array()) {
    const std::string text = json::serialize(c.at("config"));
    SCOPED_TRACE(text);
    const ModelConfig config = parse_hf_config(text, "", "golden");
    const auto max_position = static_cast<int32_t>(c.at("max_position").as_int64());
    const int32_t dim = config.rope.dim;
    const int32_t half = dim / 2;
    ASSERT_EQ(c.at("cos").as_array()[0].as_array().size(), static_cast<size_t>(half));
    std::vector<float> table(static_cast<size_t>(max_position) * dim);
    fill_rope_table(config.rope, max_position, table.data());
    const json::array& positions = c.at("positions").as_array();
    for (size_t p = 0; p < positions.size(); ++p) {
      const int64_t position = positions[p].as_int64();
      const float* row = table.data() + position * dim;
      // transformers keeps frequencies in fp32, so its angles are off by 2^-24 of themselves and
      // of the few fp32 steps that led to them.
      const double tolerance = 1e-6 + 2e-6 * static_cast<double>(position);
      for (int32_t i = 0; i < half; ++i) {
        const auto at = [&](const char* which) {
          return c.at(which).as_array()[p].as_array()[i].to_number<double>();
        };
        EXPECT_NEAR(row[i], at("cos"), tolerance) << "position " << position << ", " << i;
        EXPECT_NEAR(row[half + i], at("sin"), tolerance) << "position " << position << ", " << i;
      }
    }
  }
}

TEST(Rope, FactorsDivideFrequencies) {
  RopeConfig rope;
  rope.dim = 4;
  rope.freq_factors = {1.0f, 4.0f};
  std::vector<float> table(2 * 4);
  fill_rope_table(rope, 2, table.data());
  EXPECT_FLOAT_EQ(table[4], std::cos(1.0f));
  EXPECT_FLOAT_EQ(table[5], std::cos(0.01f / 4));
  EXPECT_FLOAT_EQ(table[7], std::sin(0.01f / 4));
}

}  // namespace
}  // namespace millrace
