// ChatTemplate: texts as transformers 5 renders them, and the limits on what a template may do.
// The expected texts were made with transformers' render_jinja_template.
#include <gtest/gtest.h>

#include <ctime>

#include "engine/base/status.h"
#include "engine/text/text.h"

namespace millrace {
namespace {

constexpr const char* kSmolLm2 =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}";

constexpr const char* kLlama3 = R"({{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role not in ['user', 'assistant'] %}
        {{- raise_exception("Unknown role: " + message.role) }}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- for tool in tools or [] %}
    {{- tool | tojson(indent=4) }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
)";

std::string render(std::string_view source, std::string_view messages = "[]",
    std::string_view extra = "{}", bool add_generation_prompt = true) {
  return ChatTemplate::parse(source, "<s>", "</s>")->render(messages, extra, add_generation_prompt);
}

std::string failure(
    std::string_view source, std::string_view messages = "[]", std::string_view extra = "{}") {
  try {
    return "rendered: " + render(source, messages, extra);
  } catch (const RequestError& error) {
    EXPECT_EQ(error.status().code, ErrorCode::kInvalidArgument);
    EXPECT_EQ(error.status().param, "messages");
    return error.what();
  }
}

TEST(ChatTemplate, SmolLm2) {
  EXPECT_EQ(render(kSmolLm2, R"([{"role":"user","content":"Hi <b> \"there\" é 😀\n"}])"),
      "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
      "Face<|im_end|>\n<|im_start|>user\nHi <b> \"there\" é 😀\n<|im_end|>\n"
      "<|im_start|>assistant\n");
  EXPECT_EQ(render(kSmolLm2, R"([{"role":"system","content":"S"},{"role":"user","content":"U"}])",
                "{}", false),
      "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n");
}

TEST(ChatTemplate, Llama3) {
  EXPECT_EQ(
      render(kLlama3, R"([{"role":"user","content":" U "}])", R"({"date_string":"26 Jul 2024"})"),
      "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n"
      "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>"
      "<|start_header_id|>assistant<|end_header_id|>\n\n");
  const std::string tools = R"({"date_string":"D","tools":[{"type":"function","function":)"
                            R"({"name":"z","a":{},"list":[1,"<&'>",2.0],"n":null}}]})";
  EXPECT_EQ(render(kLlama3, R"([{"role":"system","content":"S"}])", tools, false),
      "<s><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\n"
      "Today Date: D\n\nS<|eot_id|>{\n    \"type\": \"function\",\n    \"function\": {\n"
      "        \"name\": \"z\",\n        \"a\": {},\n        \"list\": [\n            1,\n"
      "            \"<&'>\",\n            2.0\n        ],\n        \"n\": null\n    }\n}");
  EXPECT_EQ(failure(kLlama3, R"([{"role":"robot","content":""}])"), "Unknown role: robot");
}

TEST(ChatTemplate, TellsTheDate) {
  const auto today = [] {
    const std::time_t now = std::time(nullptr);
    std::tm local{};
    localtime_r(&now, &local);
    char text[32];
    return std::string(text, std::strftime(text, sizeof text, "%d %b %Y", &local));
  };
  const std::string before = today();
  const std::string said = render("{{ strftime_now('%d %b %Y') }}");
  EXPECT_TRUE(said == before || said == today()) << said;
  EXPECT_NE(failure("{{ strftime_now('%99999d') }}").find("bad format"), std::string::npos);
}

TEST(ChatTemplate, WritesValuesAsPythonDoes) {
  const std::pair<const char*, const char*> cases[] = {
      {"{{ v|tojson }}", R"({"z": 1, "a": [1.0, 1e+20, 1e-07, true, null], "s": "é</b>'\n"})"},
      {"{{ v|tojson(separators=(',',':'), sort_keys=true, ensure_ascii=true) }}",
          R"({"a":[1.0,1e+20,1e-07,true,null],"s":"\u00e9</b>'\n","z":1})"},
      {"{{ v }}", R"({'z': 1, 'a': [1.0, 1e+20, 1e-07, True, None], 's': "é</b>'\n"})"},
      {"{{ true }} {{ none }} {{ missing }}{{ 0.1 + 0.2 }} {{ true|string }}",
          "True None 0.30000000000000004 True"},
      {"{% for k, x in v.items() %}{{ k }}{% endfor %}", "zas"},
      {"{{ 'a</t>b'.split('</t>')[-1] }}{{ ' x\n'.strip() }}{{ v.get('q', 7) }}", "bx7"},
      {"{{ 'k=v=w'.partition('=')[2] }} {{ 'a b c'.rsplit(' ', 1)[0] }}", "v=w a b"},
      {"{{ 'fn_x'.removeprefix('fn_') }} {{ 'x.y'.rpartition('.')[0] }}", "x x"},
      {"{{ 'x' is sequence }} {{ 'x' is iterable }} {{ v is mapping }}", "True True True"},
      {"{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}"
       "{% endif %}{{ i }}{% endfor %}",
          "02"},
      {"  {% if true %}\n  a\n  {% endif %}\nb\n", "  a\nb"},
      {"{%- generation -%} x {% endgeneration %}y", "x y"},
      {"{{ [1, 2, 3][::-1] }}{{ messages[-1] is defined }}", "[3, 2, 1]False"},
      {"{{ none is iterable }} {{ missing is iterable }} {{ [v.s]|trim }}",
          "False True [\"é</b>'\\n\"]"},
      {"{{ ['\u200d\u00a0\U000e0001'] }}", "['\\u200d\\xa0\\U000e0001']"},
      {"{{ tools is none }} {{ documents is none }} {{ eos_token }}", "True True </s>"},
  };
  for (const auto& [source, expected] : cases) {
    EXPECT_EQ(render(source, "[]", R"({"v":{"z":1,"a":[1.0,1e20,1e-7,true,null],"s":"é</b>'\n"}})"),
        expected)
        << source;
  }
}

TEST(ChatTemplate, HasLimits) {
  EXPECT_NE(failure("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}"
                    "{% endfor %}")
                .find("did not end within"),
      std::string::npos);
  EXPECT_NE(failure("{% for a in range(100000) %}{{ 'x' * 1000 }}{% endfor %}")
                .find("wrote more than 8388608 bytes"),
      std::string::npos);
  EXPECT_NE(failure("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}").find("recursion"),
      std::string::npos);
  // A value as deep as the steps allow is dropped without exhausting the stack.
  EXPECT_EQ(render("{% set n = namespace(x=[]) %}{% for a in range(100000) %}"
                   "{% set n.x = [[[[n.x]]]] %}{% endfor %}ok"),
      "ok");
}

TEST(ChatTemplate, ReachesNoOtherTemplate) {
  for (const char* source : {"{% include '/etc/passwd' %}", "{% import 'x' as y %}",
           "{% extends 'x' %}", "{% include 'chat template' %}"}) {
    EXPECT_EQ(failure(source).find("rendered"), std::string::npos) << source;
  }
}

TEST(ChatTemplate, RefusesWhatDoesNotParse) {
  std::string chain = "{{ ";
  chain.append(100000, '-').append("1 }}");
  EXPECT_EQ(render(chain), "1");  // deep, but within the parser's stack
  for (const std::string& source :
      {std::string("{% if %}"), std::string("{{ 'a' "), std::string("\xff"),
          std::string(300000, 'x'), "{{ " + std::string(1000, '(') + "1 }}"}) {
    try {
      ChatTemplate::parse(source, "", "");
      FAIL() << source.substr(0, 40);
    } catch (const Error& error) {
      EXPECT_EQ(error.exit_code(), ExitCode::kModel);
    }
  }
}

TEST(ChatTemplate, RefusesBadVariables) {
  for (const char* messages : {"", "{", "{}", "[1]", "null", "[\"\xff\"]"}) {
    EXPECT_NE(failure("x", messages).find("messages is not an array"), std::string::npos);
  }
  EXPECT_NE(failure("x", "[]", "[]").find("not an object"), std::string::npos);
  std::string deep = "{\"v\":";
  deep.append(100000, '[');
  EXPECT_NE(failure("x", "[]", deep).find("not an object"), std::string::npos);
  EXPECT_EQ(render("{{ messages|length }}", "[]", R"({"messages":[{}],"bos_token":"B"})"), "0");
}

}  // namespace
}  // namespace millrace
