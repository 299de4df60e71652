#include "launch/cli/command_line.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "engine/base/status.h"

namespace millrace {
namespace {

using Words = std::vector<std::string>;

CommandLine parse(const Words& args) { return parse_command_line(args, /*flags_only=*/false); }

// The sentence that `args` are refused with.
std::string refusal(const Words& args) {
  try {
    parse(args);
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), ExitCode::kUsage);
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    return error.what();
  }
  return "accepted";
}

std::string config_file(const std::string& content) {
  const std::string path = testing::TempDir() + "config.yaml";
  std::ofstream(path) << content;
  return path;
}

struct Variable {
  Variable(const char* name, const char* value) : name(name) { setenv(name, value, 1); }
  ~Variable() { unsetenv(name); }
  const char* name;
};

TEST(Normalize, ForeignSpellings) {
  EXPECT_EQ(normalize({"-tp", "2", "-pp=3", "-np", "8", "--tp_size=4", "--max_model_len", "9"}),
      (Words{"--tensor-parallel-size", "2", "--pipeline-parallel-size=3", "--max-num-seqs", "8",
          "--tp-size=4", "--max-model-len", "9"}));
  EXPECT_EQ(normalize({"--prompt", "-tp", "--stop", "--a_b", "model_a.gguf"}),
      (Words{"--prompt", "-tp", "--stop", "--a_b", "model_a.gguf"}));
  EXPECT_EQ(normalize({"--mpirun_args", "--mca plm_rsh_agent a_b"}),
      (Words{"--mpirun-args", "--mca plm_rsh_agent a_b"}));
}

TEST(Nearest, OnlyWhatIsNear) {
  const Words names = {"max-num-seqs", "max-model-len", "port"};
  EXPECT_EQ(nearest("max-num-seq", names), "max-num-seqs");
  EXPECT_EQ(nearest("prot", names), "port");
  EXPECT_EQ(nearest("frobnicate", names), "");
}

TEST(CommandLine, FlagsOfEveryKind) {
  const auto line =
      parse({"serve", "m.gguf", "-tp", "4", "--pp_size", "2", "-c", "4096", "--kv-cache-memory",
          "2GiB", "--pp-layers", "16,14", "--port", "0", "--mpirun-args", "--mca btl tcp,self"});
  EXPECT_EQ(line.command->name, "serve");
  const EngineConfig& engine = line.options.launch.engine;
  EXPECT_EQ(engine.model_path, "m.gguf");
  EXPECT_EQ(engine.tp, 4);
  EXPECT_EQ(engine.pp, 2);
  EXPECT_EQ(engine.max_model_len, 4096);
  EXPECT_EQ(engine.kv_cache_bytes, int64_t{2} << 30);
  EXPECT_EQ(engine.pp_layers, (std::vector<int32_t>{16, 14}));
  EXPECT_EQ(line.options.server.port, 0);
  EXPECT_EQ(line.options.launch.mpirun_args, (Words{"--mca", "btl", "tcp,self"}));
}

TEST(CommandLine, WhatCallsOfTheServerMay) {
  const Options bare = parse({"serve", "m"}).options;
  EXPECT_FALSE(bare.allow_priority || bare.strict_fields);
  EXPECT_EQ(bare.server.limits.calls_per_key, 256u);
  const Options set =
      parse({"serve", "m", "--scheduling-policy", "priority", "--strict-fields", "--api-key", "k",
                "--api-key-file", "f", "--max-calls-per-key", "3", "--max-calls-per-minute", "60"})
          .options;
  EXPECT_TRUE(set.allow_priority && set.strict_fields);
  EXPECT_EQ(set.server.api_key, "k");
  EXPECT_EQ(set.server.api_key_file, "f");
  EXPECT_EQ(set.server.limits.calls_per_key, 3u);
  EXPECT_EQ(set.server.limits.calls_per_minute, 60u);
  EXPECT_NE(refusal({"serve", "m", "--scheduling-policy", "lifo"}).find("--scheduling-policy"),
      std::string::npos);
}

TEST(CommandLine, TheModelMayBeAFlag) {
  EXPECT_EQ(parse({"bench", "latency", "--model", "m"}).options.launch.engine.model_path, "m");
  EXPECT_EQ(parse({"bench", "latency", "--json", "m"}).options.launch.engine.model_path, "m");
}

TEST(CommandLine, TextIsTakenAsItIs) {
  const auto line = parse({"generate", "m", "--prompt", "[a, b]", "--stop", "[x,y]", "--stop",
      "--z_z", "--temperature", "0", "--seed", "-1"});
  EXPECT_EQ(line.options.prompt, "[a, b]");
  EXPECT_EQ(line.options.sampling.at("stop"), (boost::json::array{"[x,y]", "--z_z"}));
  EXPECT_EQ(line.options.sampling.at("temperature"), 0.0);
  EXPECT_EQ(line.options.sampling.at("seed"), -1);
  EXPECT_FALSE(line.options.sampling.contains("top_p"));
}

TEST(CommandLine, HelpNamesEachFlagsVariable) {
  const std::string help = parse({"serve", "--help"}).text;
  EXPECT_NE(help.find("MILLRACE_TENSOR_PARALLEL_SIZE"), std::string::npos);
  EXPECT_NE(help.find("MILLRACE_PORT"), std::string::npos);
  EXPECT_NE(parse({"--help"}).text.find("run-batch"), std::string::npos);
  EXPECT_NE(parse({"--version"}).text.find("millrace " MILLRACE_VERSION), std::string::npos);
}

TEST(CommandLine, EveryMistakeIsOneSentence) {
  EXPECT_EQ(refusal({"serve", "m", "--prot", "1"}),
      "unknown flag --prot: did you mean --port? `millrace serve --help` lists the flags");
  EXPECT_EQ(refusal({"serv", "m"}),
      "unknown command 'serv': did you mean serve? `millrace --help` lists the commands");
  EXPECT_NE(refusal({"serve", "m", "-tp", "0"}).find("--tensor-parallel-size"), std::string::npos);
  EXPECT_NE(refusal({"serve", "m", "--port", "70000"}).find("--port"), std::string::npos);
  EXPECT_NE(refusal({"serve", "m", "--port"}).find("--port"), std::string::npos);
  EXPECT_NE(
      refusal({"generate", "m", "--temperature", "warm"}).find("--temperature"), std::string::npos);
  EXPECT_NE(refusal({"serve", "m", "n"}).find("'n'"), std::string::npos);
  EXPECT_NE(refusal({"serve"}).find("no model named"), std::string::npos);
  EXPECT_NE(refusal({"serve", "m", "--dtype", "float16"}).find("float32"), std::string::npos);
  EXPECT_NE(refusal({"serve", "m", "--pp-layers", "3,x"}).find("--pp-layers"), std::string::npos);
  EXPECT_NE(refusal({"bench", "m"}).find("latency"), std::string::npos);
  EXPECT_NE(refusal({}).find("--help"), std::string::npos);
}

TEST(Config, TheStrongerSourceWins) {
  const std::string path = config_file(
      "port: 1000\nmax_num_seqs: 11\nblock-size: 32\nmodel: from-file\nstop: [a, 'b,c']\n");
  {
    const auto line = parse({"serve", "--config", path});
    EXPECT_EQ(line.options.server.port, 1000);
    EXPECT_EQ(line.options.launch.engine.max_num_seqs, 11);
    EXPECT_EQ(line.options.launch.engine.block_size, 32);
    EXPECT_EQ(line.options.launch.engine.model_path, "from-file");
  }
  const Variable port("MILLRACE_PORT", "2000");
  const Variable seqs("MILLRACE_MAX_NUM_SEQS", "22");
  const Variable config("MILLRACE_CONFIG", path.c_str());
  const auto line = parse({"serve", "from-flag", "--port", "3000"});
  EXPECT_EQ(line.options.server.port, 3000);
  EXPECT_EQ(line.options.launch.engine.max_num_seqs, 22);
  EXPECT_EQ(line.options.launch.engine.block_size, 32);
  EXPECT_EQ(line.options.launch.engine.model_path, "from-flag");
  EXPECT_EQ(parse({"generate", "--prompt", "x"}).options.sampling.at("stop"),
      (boost::json::array{"a", "b,c"}));
}

TEST(Config, ListsAndSwitches) {
  const std::string path = config_file("pp-layers: [9, 9, 8, 6]\njson: true\nignore-eos: false\n");
  const auto line = parse({"generate", "m", "--config", path});
  EXPECT_EQ(line.options.launch.engine.pp_layers, (std::vector<int32_t>{9, 9, 8, 6}));
  EXPECT_TRUE(line.options.json);
  EXPECT_FALSE(line.options.ignore_eos);
}

TEST(Config, MistakesAreNamed) {
  EXPECT_NE(refusal({"serve", "m", "--config", config_file("max-num-seq: 4\n")})
                .find("unknown key max-num-seq"),
      std::string::npos);
  EXPECT_NE(refusal({"serve", "m", "--config", config_file("max-num-seq: 4\n")})
                .find("did you mean max-num-seqs?"),
      std::string::npos);
  EXPECT_NE(refusal({"serve", "m", "--config", config_file("port: [1, 2]\n")}).find("--port"),
      std::string::npos);
  EXPECT_NE(refusal({"serve", "m", "--config", config_file("port: far\n")}).find("config.yaml"),
      std::string::npos);
  EXPECT_NE(refusal({"serve", "m", "--config", config_file("port: 1\nport: 2\n")}).find("line 2"),
      std::string::npos);
  EXPECT_NE(refusal({"serve", "m", "--config", config_file("port:\n")}).find("needs a value"),
      std::string::npos);
  EXPECT_NE(refusal({"serve", "m", "--config", config_file("port: {a: 1}\n")}).find("line 1"),
      std::string::npos);
  EXPECT_NE(refusal({"serve", "m", "--config", config_file("a: [1\n")}).find("config.yaml line"),
      std::string::npos);
  EXPECT_NE(refusal({"serve", "m", "--config", config_file("config: x\n")}).find("config"),
      std::string::npos);
  EXPECT_NE(refusal({"serve", "m", "--config", "/no/such.yaml"}).find("/no/such.yaml"),
      std::string::npos);
}

}  // namespace
}  // namespace millrace
