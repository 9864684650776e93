// C functions looked up in a library that the process has loaded: it is not needed to build.
#pragma once

#if defined(_WIN32)
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace layernorm {

class LoadedLibrary {
 public:
  // By file name or path; false where no such library is loaded.
  explicit LoadedLibrary(const char* name) {
#if defined(_WIN32)
    handle_ = GetModuleHandleA(name);
#else
    handle_ = dlopen(name, RTLD_NOW | RTLD_NOLOAD);
#endif
  }

  explicit operator bool() const { return handle_ != nullptr; }

  // False if the library has no function of this name.
  template <class Function>
  bool find(const char* name, Function*& function) const {
#if defined(_WIN32)
    function = reinterpret_cast<Function*>(GetProcAddress(handle_, name));
#else
    function = reinterpret_cast<Function*>(dlsym(handle_, name));
#endif
    return function != nullptr;
  }

 private:
#if defined(_WIN32)
  HMODULE handle_;
#else
  void* handle_;
#endif
};

// For a list X(result, name, parameters) of C functions: declares a pointer to each; looks each up.
#define LAYERNORM_DECLARE(result, name, parameters) result(*name) parameters = nullptr;
#define LAYERNORM_FIND(result, name, parameters) \
  if (!library.find(#name, this->name)) return #name;

// Fills all of `c_api` or none of it, through its find(), from the library with this file name or
// path. Returns the name of what was not found, or null.
template <class CApi>
const char* load_functions(const char* name, CApi* c_api) {
  const LoadedLibrary library(name);
  if (!library) return name;
  CApi found;
  if (const char* missing = found.find(library)) return missing;
  *c_api = found;
  return nullptr;
}

}  // namespace layernorm
