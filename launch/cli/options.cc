#include "launch/cli/options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <boost/json/value_from.hpp>
#include <charconv>
#include <map>
#include <sstream>

#include "engine/base/log.h"
#include "engine/base/status.h"
#include "engine/worker/backend.h"
#include "launch/cli/commands.h"

namespace millrace {

namespace {

constexpr int kMaxDegree = 4096;
constexpr int kMaxSlots = 65535;  // a slot's number is 16 bits
constexpr int kMaxTokens = 1 << 30;
constexpr int kMaxFitGpus = 256;
constexpr int kGpuTokens = 8192;  // of a step
constexpr double kServeStretch = 2;

const std::map<std::string, DeviceKind> kDevices = {
    {"auto", DeviceKind::kAuto}, {"cpu", DeviceKind::kCpu}, {"cuda", DeviceKind::kCuda}};
const std::map<std::string, ActivationType> kDtypes = {{"auto", ActivationType::kAuto},
    {"float32", ActivationType::kFloat32}, {"float16", ActivationType::kFloat16},
    {"bfloat16", ActivationType::kBFloat16}};
const std::map<std::string, Balance> kBalances = {
    {"time", Balance::kTime}, {"tokens", Balance::kTokens}, {"first-come", Balance::kFirstCome}};

const std::map<std::string, bool> kPolicies = {{"fcfs", false}, {"priority", true}};

// Adds options to one group of the help at a time.
class Flags {
 public:
  Flags(CLI::App& app, std::string group) : app_(app), group_(std::move(group)) {}

  // `names`: the long name first, "--tensor-parallel-size,--tp-size".
  template <typename T>
  CLI::Option* add(const std::string& names, T& value, const std::string& text) {
    return describe(app_.add_option(names, value, text));
  }
  // The same, with the value's default in the help.
  template <typename T>
  CLI::Option* add_with_default(const std::string& names, T& value, const std::string& text) {
    return add(names, value, text)->capture_default_str();
  }
  // One of the names of `choices`.
  template <typename T>
  CLI::Option* add_choice(const std::string& names, T& value,
      const std::map<std::string, T>& choices, const std::string& text) {
    return describe(
        app_.add_option_function<std::string>(
                names, [&value, &choices](const std::string& name) { value = choices.at(name); },
                text)
            ->check(CLI::IsMember(choices)));
  }
  CLI::Option* add_switch(const std::string& names, bool& value, const std::string& text) {
    return describe(app_.add_flag(names, value, text));
  }

  // A field of the API under its own name, with '-' for '_'.
  template <typename T>
  CLI::Option* add_field(const std::string& names, Options& options, const std::string& text) {
    std::string key = names.substr(names.find("--") + 2);
    std::replace(key.begin(), key.end(), '-', '_');
    return describe(app_.add_option_function<T>(
        names,
        [&options, key](const T& value) { options.sampling[key] = boost::json::value_from(value); },
        text));
  }

 private:
  CLI::Option* describe(CLI::Option* option) {
    std::string variable = "MILLRACE_" + option->get_lnames().front();
    for (char& c : variable) c = c == '-' ? '_' : static_cast<char>(std::toupper(c));
    return option->envname(variable)->group(group_);
  }

  CLI::App& app_;
  std::string group_;
};

void declare_model(CLI::App& app, Options& o) {
  Flags flags(app, "Model");
  EngineConfig& engine = o.launch.engine;
  flags.add("model,--model", engine.model_path,
      "A model folder (config.json, *.safetensors) or a .gguf file");
  flags.add("--served-model-name", o.served_model_name,
      "Name that clients use. Default: the last part of the path");
  flags.add("--chat-template", o.chat_template, "A Jinja file to use for the model's template");
  flags.add_choice("--device", engine.device, kDevices,
      "auto, cpu or cuda. Default: a GPU where there is one, else the CPU");
  flags.add_choice("--dtype", engine.dtype, kDtypes,
      "auto, float32, float16 or bfloat16: of activations on a GPU. Default: as the weights are "
      "stored; the CPU computes in float32");
  flags
      .add_with_default("--load-format", o.load_format,
          "auto, or dummy: random weights in the shapes of the folder's config.json")
      ->check(CLI::IsMember({"auto", "dummy"}));
  flags.add_switch("--tune", engine.tune,
      "Before serving, measure the matrix products that this GPU has not measured yet");
}

void declare_degrees(CLI::App& app, Options& o) {
  Flags flags(app, "Layout");
  EngineConfig& engine = o.launch.engine;
  flags
      .add_with_default(
          "--tensor-parallel-size,--tp-size", engine.tp, "Ranks that share every layer")
      ->check(CLI::Range(1, kMaxDegree));
  flags
      .add_with_default(
          "--pipeline-parallel-size,--pp-size", engine.pp, "Stages of layers, one after the other")
      ->check(CLI::Range(1, kMaxDegree));
  flags.add(
      "--pp-layers", o.pp_layers, "Layers of each stage by hand, 9,9,8,6. Default: cut by cost");
}

void declare_hosts(CLI::App& app, Options& o) {
  Flags flags(app, "Layout");
  flags.add("--hostfile", o.launch.hostfile,
      "Open MPI's list of hosts, for ranks on several. Default: this host");
  flags.add("--mpirun-args", o.mpirun_args, "Further arguments of the mpirun that is launched");
  flags.add("--control-address", o.launch.control_address,
      "Address of this host that workers dial. Default: 127.0.0.1, or with several hosts the "
      "first that leads outside");
}

// What a step may hold, and what it is made for.
void declare_steps(CLI::App& app, Options& o) {
  Flags flags(app, "Limits");
  EngineConfig& engine = o.launch.engine;
  engine.max_num_seqs = engine.max_num_batched_tokens = 0;  // by device: finish_options
  flags
      .add("-c,--max-model-len,--ctx-size", engine.max_model_len,
          "Longest prompt plus answer in tokens. Default: the model's own")
      ->check(CLI::Range(1, kMaxTokens));
  flags
      .add("--max-num-seqs,--parallel", engine.max_num_seqs,
          "Sequences that run at once. Default: 64 on the CPU, 512 on GPUs, in a simulation 256 "
          "for "
          "each stage")
      ->check(CLI::Range(1, kMaxSlots));
  flags
      .add("--max-num-batched-tokens", engine.max_num_batched_tokens,
          "Tokens computed in one step. Default: 2048 on the CPU, 8192 on GPUs")
      ->check(CLI::Range(1, kMaxRowTokens));
  flags
      .add_with_default("--max-itl-stretch", o.launch.max_itl_stretch,
          "While more requests decode than wait for a first token, prompts stretch the time "
          "between "
          "two tokens by this factor at most; 0: no limit, as is best for throughput")
      ->check(CLI::Range(0.0, 1e6));
  flags.add_with_default("--block-size", engine.block_size, "Tokens of a KV block: 16, 32 or 64")
      ->check(CLI::IsMember({16, 32, 64}));
  flags
      .add("--kv-cache-memory", engine.kv_cache_bytes,
          "Memory of the KV cache per rank, 2GiB. Default: a share of what is free")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true));
}

void declare_waits(CLI::App& app, Options& o) {
  Flags flags(app, "Limits");
  EngineConfig& engine = o.launch.engine;
  flags
      .add("-t,--threads", engine.threads,
          "Compute threads per rank. Default: cores divided by ranks on the host")
      ->check(CLI::Range(1, 1024));
  flags
      .add_with_default("--timeout", engine.timeout_s,
          "Seconds that ranks wait for each other before they give up")
      ->check(CLI::Range(1, 86400));
}

void declare_general(CLI::App& app, Options& o) {
  Flags flags(app, "General");
  flags.add("--config", o.config, "A YAML file of flags: its keys are long names");
  flags
      .add_with_default("--log-level,--uvicorn-log-level", o.launch.log_level,
          "debug, info, warning, error or off; logs go to standard error")
      ->check(CLI::IsMember({"debug", "info", "warning", "error", "off"}));
  flags.add_with_default("--log-format", o.launch.log_format, "text, or json: an object a line")
      ->check(CLI::IsMember({"text", "json"}));
}

void declare_profile(CLI::App& app, Options& o) {
  Flags(app, "General")
      .add("--profile", o.profile,
          "Write to this file what every rank did in every step, as a Chrome trace for "
          "ui.perfetto.dev");
}

void declare_sampling(CLI::App& app, Options& o) {
  Flags flags(app, "Sampling");
  flags.add_field<int64_t>("-n,--max-tokens", o, "Longest answer in tokens");
  flags.add_field<int64_t>("--min-tokens", o, "No stop before so many tokens");
  flags.add_field<double>("--temperature", o, "0 is greedy. Default: 1");
  flags.add_field<double>("--top-p", o, "Smallest set of tokens with this probability");
  flags.add_field<int64_t>("--top-k", o, "Only the k likeliest tokens");
  flags.add_field<double>("--min-p", o, "Only tokens this likely, relative to the likeliest");
  flags.add_field<double>("--repetition-penalty", o, "Above 1: fewer repetitions");
  flags.add_field<double>("--presence-penalty", o, "Against tokens the answer has");
  flags.add_field<double>("--frequency-penalty", o, "The same, for each time it has them");
  flags.add_field<int64_t>("--seed", o, "Of the sampling noise. Default: a new one each time");
  flags
      .add_field<std::vector<std::string>>(
          "--stop", o, "A text that ends the answer; may be given several times")
      ->allow_extra_args(false);
  flags.add_switch("--ignore-eos", o.ignore_eos, "Go on after the end-of-text token");
}

void declare_generate(CLI::App& app, Options& o) {
  Flags flags(app, "Generate");
  flags.add("-p,--prompt", o.prompt, "The text to continue");
  flags.add("-f,--prompt-file", o.prompt_file, "A file with it; - is standard input");
  flags.add_switch("--chat", o.chat, "Take the prompt as a user's message of a chat");
  flags.add("--logprobs", o.logprobs, "With --json: so many log probabilities per token");
  flags.add_switch("--json", o.json, "Write the whole response as OpenAI's JSON, with token ids");
  declare_sampling(app, o);
}

void declare_chat(CLI::App& app, Options& o) {
  Flags flags(app, "Chat");
  flags.add("--system", o.system, "The system message");
  flags.add("-m,--message", o.message, "One question; the answer is all that happens");
  declare_sampling(app, o);
}

void declare_serve(CLI::App& app, Options& o) {
  Flags flags(app, "Server");
  o.launch.max_itl_stretch = kServeStretch;
  flags.add_with_default("--host", o.server.host, "Address to listen on; 0.0.0.0 is all of them");
  flags.add_with_default("--port", o.server.port, "0 is any free one");
  flags
      .add_with_default("--shutdown-timeout", o.server.shutdown_timeout_s,
          "Seconds that running requests may take to end after SIGTERM")
      ->check(CLI::Range(0, 86400));
  flags.add("--api-key", o.server.api_key,
      "A key that clients must send. Other users of this host see a command line: rather the "
      "variable or a file");
  flags.add("--api-key-file", o.server.api_key_file, "Keys that clients may send, one a line");
  HttpLimits& limits = o.server.limits;
  flags.add_with_default("--max-calls-per-key", limits.calls_per_key, "Calls of one key at a time")
      ->check(CLI::Range(1, 1 << 20));
  flags
      .add_with_default("--max-calls-per-minute", limits.calls_per_minute,
          "Calls that one key may begin in a minute; 0: no limit")
      ->check(CLI::Range(0, 1 << 30));
  flags.add("--ssl-certfile", o.server.ssl_certfile,
      "A certificate, PEM, with its chain: HTTPS instead of HTTP");
  flags.add("--ssl-keyfile", o.server.ssl_keyfile, "Its key, PEM, without a password");
  flags
      .add("--allowed-hosts", o.server.allowed_hosts,
          "Names by which clients reach this server, commas between; *: any. Default: any, but "
          "localhost alone when --host is a loopback address; addresses always")
      ->delimiter(',');
  flags
      .add("--cors-origins", o.server.cors_origins,
          "Origins whose web pages may ask, https://a.example, commas between; *: any. Default: "
          "none")
      ->delimiter(',');
  flags.add_choice("--scheduling-policy", o.allow_priority, kPolicies,
      "fcfs or priority: whether calls may have a `priority`. Default: fcfs");
  flags.add_switch("--strict-fields", o.strict_fields,
      "Refuse calls with unknown fields instead of ignoring those");
  o.launch.max_queue = 0;  // by what runs at once: finish_options
  flags
      .add("--max-queue", o.launch.max_queue,
          "Requests that wait before further ones are refused. Default: 1024, or 4 for each that "
          "runs if that is more")
      ->check(CLI::Range(1, 1 << 20));
  flags.add_with_default("--max-connections", limits.connections, "Connections at a time")
      ->check(CLI::Range(1, 1 << 20));
  flags
      .add_with_default("--max-connections-per-address", limits.connections_per_address,
          "Connections of one client address (IPv6: of one /64) at a time; a proxy is one client")
      ->check(CLI::Range(1, 1 << 20));
  flags
      .add("--null-engine", o.launch.null_step_ms,
          "For measuring the server alone: no model is computed, each step gives pseudorandom "
          "tokens after so many ms (0: at once)")
      ->check(CLI::Range(0.0, 1e5));
}

void declare_run_batch(CLI::App& app, Options& o) {
  Flags flags(app, "Batch");
  flags.add("-i,--input-file", o.batch.input, "OpenAI batch lines (JSONL); - is standard input");
  flags.add("-o,--output-file", o.batch.output, "Where the result lines go");
  flags
      .add_with_default("--max-in-flight", o.batch.max_in_flight, "Requests in the engine at once")
      ->check(CLI::Range(1, 1 << 20));
}

void declare_bench_output(Flags& flags, Options& o) {
  flags.add_with_default("--seed", o.bench.seed, "Of the prompts");
  flags.add("--save-model", o.bench.save_model,
      "A file for the measured step times: simulate --step-model plans with them");
  flags.add_switch("--json", o.json, "Write one JSON object to standard output");
}

void declare_bench(CLI::App& app, bool latency, Options& o) {
  Flags flags(app, "Benchmark");
  flags.add_with_default("--input-len", o.bench.input_len, "Tokens of a prompt (random ids)");
  flags.add_with_default("--output-len", o.bench.output_len, "Tokens generated; EOS is ignored");
  if (latency) {
    flags.add_with_default("--batch-size", o.bench.batch_size, "Requests at once");
    flags.add_with_default("--num-iters", o.bench.num_iters, "Runs that count: medians");
    flags.add_with_default("--num-iters-warmup", o.bench.num_warmup, "Runs before them");
  } else {
    flags.add_with_default("--num-prompts", o.bench.num_prompts, "Requests in all");
    flags.add_with_default("--length-variation", o.bench.length_variation,
        "Standard deviation of both lengths over their mean (log-normal); 0: all alike");
    flags.add_with_default("--rate", o.bench.rate, "Requests a second (Poisson); 0: all at once");
  }
  declare_bench_output(flags, o);
}

void declare_serve_bench(CLI::App& app, Options& o) {
  Flags flags(app, "Benchmark");
  ServeBenchConfig& bench = o.serve_bench;
  const CLI::Range any_length(1, kMaxTokens);
  bench.target.base_url.clear();
  flags.add("--base-url", bench.target.base_url,
      "The server, http://HOST:PORT. Default: of --host and --port");
  flags.add_with_default("--host", bench.host, "Address of the server");
  flags.add_with_default("--port", bench.port, "Port of the server")->check(CLI::Range(1, 65535));
  flags.add_with_default("--endpoint", bench.target.endpoint, "Path of its completions");
  flags.add("--model", bench.target.model, "Name of the model. Default: the first that it lists");
  flags.add("--api-key", bench.target.api_key, "Key to send. Default: OPENAI_API_KEY");
  flags.add("--num-prompts", bench.num_prompts, "Requests. Default: 1000, of a trace all")
      ->check(any_length);
  flags.add_with_default(
      "--request-rate", bench.request_rate, "Requests a second, at random times; inf: all at once");
  flags.add_with_default(
      "--burstiness", bench.burstiness, "1: a Poisson process; less: in bursts; more: evenly");
  flags
      .add("--max-concurrency", bench.target.max_open,
          "Requests at a time; further ones wait. Default: no limit")
      ->check(any_length);
  flags.add_with_default("--random-input-len", bench.input_len, "Tokens of a prompt (random ids)")
      ->check(any_length);
  flags.add_with_default("--random-output-len", bench.output_len, "Tokens asked for")
      ->check(any_length);
  flags
      .add_with_default("--random-range-ratio", bench.range_ratio,
          "Lengths vary evenly by this share of themselves, up and down")
      ->check(CLI::Range(0.0, 1.0));
  flags
      .add_with_default("--random-vocab-size", bench.target.vocab_size, "Ids of prompts lie below")
      ->check(any_length);
  flags.add("--trace", bench.trace, "Requests from a file instead, as simulate --trace takes them");
  flags.add_switch("--ignore-eos", bench.target.ignore_eos,
      "Ask for answers that go on after the end-of-text token");
  flags.add("--goodput", bench.goodput,
      "Objectives in ms, ttft:200 tpot:50 e2el:10000: requests that meet all are counted apart");
  flags.add_with_default("--seed", bench.target.seed, "Of lengths, times and ids");
  flags.add_switch("--json", o.json, "Write one JSON object, with the keys of vllm bench serve");
}

void declare_interference(CLI::App& app, Options& o) {
  Flags flags(app, "Benchmark");
  o.launch.max_itl_stretch = kServeStretch;
  flags.add_with_default("--decoders", o.bench.num_decoders, "Sequences that decode");
  flags.add_with_default("--context", o.bench.context, "Tokens of their prompts");
  flags.add_with_default("--prompt-len", o.bench.prompt_len, "Tokens of the prompt that comes");
  flags.add_with_default("--num-iters-warmup", o.bench.num_warmup, "Rounds that do not count");
  declare_bench_output(flags, o);
}

void declare_json(CLI::App& app, Options& o) {
  Flags(app, "Output").add_switch("--json", o.json, "Write one JSON object to standard output");
}

void declare_fit(CLI::App& app, Options& o) {
  Flags flags(app, "Plan");
  flags.add("--gpus", o.fit.gpus, "GPUs to plan for. Default: none, the CPU of this host")
      ->check(CLI::Range(1, kMaxFitGpus));
  flags
      .add("--gpu-memory", o.fit.gpu_memory,
          "Memory of each in all, as nvidia-smi tells it: 81559MiB is an H100's")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true));
  declare_json(app, o);
}

void declare_scheduler_bench(CLI::App& app, Options& o) {
  Flags flags(app, "Benchmark");
  o.launch.engine.tp = 8;  // what TARGETS are stated for
  flags
      .add_with_default("--sequences", o.scheduler_bench.sequences,
          "Sequences that decode at once; several give a run each")
      ->delimiter(',');
  flags.add_with_default("--num-steps", o.scheduler_bench.num_steps, "Steps that count")
      ->check(CLI::Range(1, 1 << 20));
  flags.add_switch("--json", o.json, "Write one JSON object to standard output");
}

void declare_simulate(CLI::App& app, Options& o) {
  Flags flags(app, "Simulation");
  SimulateConfig& sim = o.simulate;
  const CLI::Range any_length(1, kMaxTokens);
  flags.add("--shape", sim.shape, "A folder with config.json, or a name under configs/shapes");
  flags.add_with_default("--gpu", sim.gpu, "a100, b200, h100, h200, l40s or rtx4090");
  flags.add("--step-model", sim.step_model,
      "A file of bench --save-model: that replica as measured, in place of --shape, --gpu, degrees "
      "and limits");
  flags.add_with_default("--gpus-per-host", sim.gpus_per_host, "GPUs that their own links join")
      ->check(CLI::Range(1, kMaxDegree));
  flags.add_with_default(
      "--network-gbit-per-s", sim.network_gbit_per_s, "Between hosts, one way, for each GPU");
  flags.add_with_default("--input-len", sim.lengths.prompt_mean, "Mean tokens of a prompt")
      ->check(any_length);
  flags.add_with_default("--output-len", sim.lengths.output_mean, "Mean tokens of an answer")
      ->check(any_length);
  flags.add_with_default("--length-variation", sim.lengths.variation,
      "Standard deviation of both lengths over their mean (log-normal); 0: all alike");
  flags
      .add("--num-prompts", sim.num_requests,
          "Requests. Default: 8 for each sequence that may run at once")
      ->check(CLI::Range(1, 10'000'000));
  flags.add("--trace", sim.trace,
      "Requests from a file instead, a JSON object a line: {\"arrival_s\": 0.25, "
      "\"prompt_tokens\": 812, \"output_tokens\": 64}");
  flags.add("--rate", sim.rate, "Requests a second (Poisson). Default: --load of saturation");
  flags.add_with_default("--load", sim.load, "Share of its saturation that a replica may carry");
  flags
      .add("--replicas", sim.replicas,
          "Replicas of tp x pp GPUs. Default: as many as --rate or --trace need, else 1")
      ->check(CLI::Range(1, kMaxDegree));
  flags.add_with_default("--seed", sim.seed, "Of lengths and times; the same gives the same bytes");
  flags.add_choice("--balance", sim.balance, kBalances,
      "What steps are sized by: time, as the engine does; tokens, or first-come, to compare");
  flags.add_switch("--json", o.json, "Write one JSON object to standard output");
}

// `fit` needs no GPU here, but two flags that say which one is meant.
DeviceKind device_to_plan(const EngineConfig& engine, const FitConfig& fit) {
  const bool gpu = fit.gpus > 0 && fit.gpu_memory > 0;
  if (!gpu && (fit.gpus > 0 || fit.gpu_memory > 0 || engine.device == DeviceKind::kCuda)) {
    throw Error(ExitCode::kUsage,
        "for GPUs fit needs --gpus and --gpu-memory, as in --gpus 1 --gpu-memory 81559MiB");
  }
  if (gpu && engine.device == DeviceKind::kCpu) {
    throw Error(ExitCode::kUsage, "--device cpu has no --gpus: give one of them");
  }
  if (gpu && engine.tp * engine.pp > fit.gpus) {
    throw Error(ExitCode::kUsage, "-tp {} x -pp {} needs {} GPUs, --gpus says {}", engine.tp,
        engine.pp, engine.tp * engine.pp, fit.gpus);
  }
  return gpu ? DeviceKind::kCuda : DeviceKind::kCpu;
}

std::vector<int32_t> parse_layers(const std::string& text) {
  std::vector<int32_t> layers;
  std::istringstream in(text);
  for (std::string word; std::getline(in, word, ',');) {
    int32_t value = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
    if (error != std::errc() || end != word.data() + word.size() || value < 1) {
      throw Error(
          ExitCode::kUsage, "--pp-layers {}: write the layers of each stage as 9,9,8,6", text);
    }
    layers.push_back(value);
  }
  return layers;
}

}  // namespace

const std::vector<CommandInfo>& command_table() {
  static const std::vector<CommandInfo> table = {
      {"generate", "Continue a prompt; the text alone goes to standard output", declare_generate,
          run_generate},
      {"chat", "Talk with the model in the terminal", declare_chat, run_chat},
      {"serve", "Serve the OpenAI API over HTTP", declare_serve, run_serve},
      {"run-batch", "Answer a file of OpenAI batch lines", declare_run_batch, run_batch_command},
      {"bench latency", "Time one batch of requests, alone",
          [](CLI::App& app, Options& o) { declare_bench(app, /*latency=*/true, o); },
          [](const Options& o) { return run_bench(o, /*latency=*/true); }},
      {"bench throughput", "Time many requests at once",
          [](CLI::App& app, Options& o) { declare_bench(app, /*latency=*/false, o); },
          [](const Options& o) { return run_bench(o, /*latency=*/false); }},
      {"bench serve", "Load a running server, this one or another, and time its answers",
          declare_serve_bench, run_serve_bench, CommandNeeds::kHost},
      {"bench kernels", "Time each verb of a step, in the shapes of a model", declare_json,
          [](const Options& o) { return run_device_bench(o, BenchKind::kKernels); }},
      {"bench comm", "Time what the ranks of a layout exchange", declare_json,
          [](const Options& o) { return run_device_bench(o, BenchKind::kComm); }},
      {"bench interference", "Time a long prompt among sequences that decode", declare_interference,
          run_interference},
      {"bench scheduler", "Time the scheduler's own work on a step", declare_scheduler_bench,
          run_scheduler_bench, CommandNeeds::kSteps},
      {"simulate", "Tell what a model would do on given GPUs under a load", declare_simulate,
          run_simulate, CommandNeeds::kSteps},
      {"fit", "Tell what a model takes of each rank's memory, without loading it", declare_fit,
          run_fit, CommandNeeds::kModel},
      {"doctor", "Tell what this host offers and lacks, with the remedy", declare_json, run_doctor,
          CommandNeeds::kHost},
  };
  return table;
}

void declare_flags(CLI::App& app, const CommandInfo& command, Options& options) {
  command.declare(app, options);
  const bool engine = command.needs == CommandNeeds::kEngine;
  const bool steps = command.needs >= CommandNeeds::kSteps;
  if (command.needs >= CommandNeeds::kModel) declare_model(app, options);
  if (steps) declare_degrees(app, options);
  if (engine) declare_hosts(app, options);
  if (steps) declare_steps(app, options);
  if (engine) declare_waits(app, options);
  declare_general(app, options);
  if (engine) declare_profile(app, options);
}

void finish_options(const CommandInfo& command, Options& options) {
  EngineConfig& engine = options.launch.engine;
  engine.pp_layers = parse_layers(options.pp_layers);
  if (command.needs < CommandNeeds::kModel) {
    if (engine.max_num_batched_tokens == 0) engine.max_num_batched_tokens = kGpuTokens;
    return;
  }
  if (engine.model_path.empty()) {
    throw Error(
        ExitCode::kUsage, "no model named: give a folder or a .gguf file after the command");
  }
  const bool null_engine = options.launch.null_step_ms.has_value();
  if (null_engine && engine.tp * engine.pp > 1)
    throw Error(ExitCode::kUsage, "--null-engine has no ranks: leave -tp and -pp out");
  const bool must_be_gpu = engine.device == DeviceKind::kCuda;
  if (null_engine) engine.device = DeviceKind::kCpu;
  if (command.needs == CommandNeeds::kEngine) {
    engine.device = choose_device(engine.device, &options.device_reason);
  } else {
    engine.device = device_to_plan(engine, options.fit);
  }
  const bool gpu = engine.device == DeviceKind::kCuda;
  if (must_be_gpu && !gpu) {
    throw Error(ExitCode::kLayout, "--device cuda: {}; use --device cpu, or see docs/cuda.md",
        options.device_reason);
  }
  if (!gpu && engine.dtype > ActivationType::kFloat32) {
    throw Error(ExitCode::kUsage,
        "--dtype float16 or bfloat16: the CPU computes in float32; use auto or float32");
  }
  if (engine.max_num_seqs == 0) engine.max_num_seqs = gpu ? 512 : 64;
  if (engine.max_num_batched_tokens == 0) engine.max_num_batched_tokens = gpu ? kGpuTokens : 2048;
  if (options.launch.max_queue == 0)
    options.launch.max_queue = std::max(1024, 4 * engine.max_num_seqs);
  engine.dummy_weights = options.load_format == "dummy";
  std::istringstream words(options.mpirun_args);
  for (std::string word; words >> word;) options.launch.mpirun_args.push_back(word);
}

}  // namespace millrace
