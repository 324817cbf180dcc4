// Whether tensors are what they were when a step was laid out, and where their gradients lie: for all of them in one call.
//
// A tensor is known by its Python object, which holds the address of what torch's C++ has of it; where in the object that
// is, the caller finds out. Nothing here raises: what is not as it was, in whatever way, is for Python to look at.

#include <ATen/core/TensorBase.h>
#include <c10/core/TensorImpl.h>

#include <cstdint>
#include <vector>

namespace {

using Impl = c10::TensorImpl;

// What a kernel was chosen by, and where the elements lay.
struct Known {
  c10::DispatchKeySet keys;
  caffe2::TypeMeta type;
  c10::Device device;
  std::vector<int64_t> sizes, strides;
  const void* data;

  explicit Known(const Impl& t)
      : keys(t.key_set()),
        type(t.dtype()),
        device(t.device()),
        sizes(t.sizes().vec()),
        strides(t.strides().vec()),
        data(data_of(t)) {}

  static const void* data_of(const Impl& t) {
    if (!t.has_storage()) return nullptr;
    const char* start = static_cast<const char*>(t.unsafe_storage().data());
    return start ? start + t.storage_offset() * static_cast<int64_t>(t.itemsize()) : nullptr;
  }

  bool is_kind_of(const Impl& t) const {
    return t.key_set() == keys && t.dtype() == type && t.device() == device && t.sizes() == sizes;
  }
};

struct Watch {
  int64_t offset;
  std::vector<const char*> parameters, states;
  std::vector<Known> known;  // of the parameters, then of the states
  std::vector<Known> gradients;

  const Impl& of(const char* object) const { return **reinterpret_cast<const Impl* const*>(object + offset); }

  const Impl* gradient(const char* parameter) const {
    return reinterpret_cast<const at::TensorBase&>(of(parameter).grad()).unsafeGetTensorImpl();
  }

  bool is_as_known(const Known& known, const char* object) const {
    const Impl& t = of(object);
    return known.is_kind_of(t) && t.strides() == known.strides && Known::data_of(t) == known.data;
  }
};

}  // namespace

extern "C" {

// Returns a watch of tensors as they are now, all of them with elements in memory.
Watch* optlang_watch(
    int64_t offset, int64_t count, const char* const* parameters, int64_t others, const char* const* states) {
  try {
    auto watch = new Watch{
        offset, {parameters, parameters + count}, {states, states + others}, {}, {}};
    for (const char* p : watch->parameters) {
      watch->known.emplace_back(watch->of(p));
      watch->gradients.emplace_back(*watch->gradient(p));
    }
    for (const char* s : watch->states) watch->known.emplace_back(watch->of(s));
    return watch;
  } catch (...) {
    return nullptr;
  }
}

void optlang_unwatch(Watch* watch) { delete watch; }

// Whether everything is as it was and each parameter has a gradient of the same kind; writes where those lie.
int optlang_look(const Watch* watch, int64_t* addresses) {
  try {
    const size_t count = watch->parameters.size();
    for (size_t i = 0; i < count; ++i) {
      const char* p = watch->parameters[i];
      if (!watch->is_as_known(watch->known[i], p)) return 0;
      const Impl& g = *watch->gradient(p);
      if (!watch->gradients[i].is_kind_of(g) || !g.is_contiguous()) return 0;
      const void* data = Known::data_of(g);
      if (!data) return 0;
      addresses[i] = reinterpret_cast<int64_t>(data);
    }
    for (size_t i = 0; i < watch->states.size(); ++i)
      if (!watch->is_as_known(watch->known[count + i], watch->states[i])) return 0;
    return 1;
  } catch (...) {
    return 0;
  }
}
}
