// docs/api.md against the table of fields.
#include <gtest/gtest.h>

#include <array>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <fstream>
#include <iterator>
#include <map>
#include <regex>
#include <sstream>

#include "launch/api/fields.h"

namespace millrace {
namespace {

constexpr ApiKind kKinds[] = {
    ApiKind::kChat, ApiKind::kCompletion, ApiKind::kTokenize, ApiKind::kDetokenize};

std::string read(const char* path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// What the page says of each field on each route.
std::map<std::string, std::array<std::string, 4>> documented() {
  std::map<std::string, std::array<std::string, 4>> table;
  const std::string page = read("docs/api.md");
  const std::string cell = R"( (yes|refused|no effect|-) \|)";
  const std::regex row(R"(\n\| `(\w+)` \|)" + cell + cell + cell + cell);
  for (std::sregex_iterator at(page.begin(), page.end(), row), end; at != end; ++at) {
    EXPECT_FALSE(table.contains((*at)[1])) << (*at)[1] << " stands there twice";
    table[(*at)[1]] = {(*at)[2], (*at)[3], (*at)[4], (*at)[5]};
  }
  return table;
}

// What a server of strict fields does with a value that no field takes, but some take unread.
std::string actual(ApiKind kind, const std::string& name) {
  try {
    const boost::json::object body{{name, {{"x", 1}}}};
    const CallFields fields = read_fields(kind, body, /*strict=*/true);
    const bool read =
        fields.messages || fields.prompt || fields.tokens || fields.has_stream_options;
    return read ? "yes" : "no effect";
  } catch (const RequestError& error) {
    const std::string message = error.what();
    EXPECT_EQ(error.status().param, name);
    if (message.find("is not a field of this route") != std::string::npos) return "-";
    return message.find("is not supported") != std::string::npos ? "refused" : "yes";
  }
}

TEST(Docs, TheTableOfFieldsIsWhatTheServerDoes) {
  const auto table = documented();
  for (const auto& [name, support] : table)
    for (size_t i = 0; i < 4; ++i) EXPECT_EQ(actual(kKinds[i], name), support[i]) << name;
  // Every name in the tables of the source.
  const std::string source = read("launch/api/fields.cc");
  const std::string tables = source.substr(source.find("constexpr Field kFields[]"));
  const std::regex quoted(R"re("(\w+)")re");
  size_t num_names = 0;
  const std::string names = tables.substr(0, tables.find("\n// A name that a client made up"));
  for (std::sregex_iterator at(names.begin(), names.end(), quoted), end; at != end; ++at) {
    EXPECT_TRUE(table.contains((*at)[1])) << (*at)[1] << " is missing";
    ++num_names;
  }
  EXPECT_GT(num_names, 60u);
}

// Every field that is not refused is described on its route, and no other.
TEST(Docs, TheOpenApiDocumentHasTheFieldsOfTheTable) {
  const boost::json::value document = boost::json::parse(openapi_json());
  constexpr const char* kPaths[] = {
      "/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"};
  const auto table = documented();
  for (size_t i = 0; i < 4; ++i) {
    const boost::json::value& schema = document.at("paths")
                                           .at(kPaths[i])
                                           .at("post")
                                           .at("requestBody")
                                           .at("content")
                                           .at("application/json")
                                           .at("schema");
    const std::string name(
        schema.at("$ref").as_string().subview(sizeof("#/components/schemas/") - 1));
    const boost::json::object& properties =
        document.at("components").at("schemas").at(name).at("properties").as_object();
    EXPECT_FALSE(properties.empty());
    for (const auto& property : properties)
      EXPECT_TRUE(table.contains(property.key())) << kPaths[i] << " " << property.key();
    for (const auto& [field, support] : table) {
      const bool taken = support[i] == "yes" || support[i] == "no effect";
      EXPECT_EQ(properties.contains(field), taken) << kPaths[i] << " " << field;
    }
  }
}

}  // namespace
}  // namespace millrace
