// Numbers and words in environment variables. One that is not accepted is told once on stderr, and
// the default is used: a variable may be read on any thread, where nothing can be raised.
#pragma once

#include <atomic>
#include <cctype>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>

namespace layernorm::environment {

inline const char* skip_spaces(const char* text) {
  while (std::isspace(static_cast<unsigned char>(*text))) ++text;
  return text;
}

// A variable's text without the spaces around it; nothing if it is not set.
inline std::optional<std::string> text_of(const char* name) {
  const char* value = std::getenv(name);
  if (!value) return std::nullopt;
  std::string text = skip_spaces(value);
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back()))) text.pop_back();
  return text;
}

// Skips a unit of bytes: K, KB or KiB, and so on to T. Returns the power of two that it stands for.
inline int skip_unit(const char** text) {
  static const char kUnits[] = "KMGT";
  int power = 0;
  const int letter = std::toupper(static_cast<unsigned char>(**text));
  if (const char* unit = letter ? std::strchr(kUnits, letter) : nullptr) {
    power = 10 * static_cast<int>(unit - kUnits + 1);
    ++*text;
    if (**text == 'i' || **text == 'I') ++*text;
  }
  if (**text == 'b' || **text == 'B') ++*text;
  return power;
}

// A whole number, not negative, with a unit of bytes or not; nothing for any other text.
inline std::optional<uint64_t> number_in(const std::string& text, bool in_bytes) {
  const char* rest = text.c_str();
  if (!std::isdigit(static_cast<unsigned char>(*rest))) return std::nullopt;
  char* end = nullptr;
  errno = 0;
  const uint64_t number = std::strtoull(rest, &end, 10);
  if (errno == ERANGE) return std::nullopt;
  rest = end;
  int power = 0;
  if (in_bytes) {
    rest = skip_spaces(rest);
    power = skip_unit(&rest);
  }
  if (*rest != '\0' || number > UINT64_MAX >> power) return std::nullopt;
  return number << power;
}

// `told` is the variable's own, so that threads that read it at once print one line.
inline void tell_once(std::atomic<bool>& told, const char* name, const std::string& text,
                      const std::string& expected, const std::string& instead) {
  if (told.exchange(true)) return;
  std::fprintf(stderr,
               "layernorm: the environment variable %s is \"%.80s\", expected %s: %s is used\n",
               name, text.c_str(), expected.c_str(), instead.c_str());
}

}  // namespace layernorm::environment
