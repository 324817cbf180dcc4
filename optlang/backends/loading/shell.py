"""A light C++ shell around Inductor's kernels.

Inductor's ahead-of-time compiler wraps a kernel into a general model container, with weights, constant folding and a
pool of models. An update has none of those, and g++ spends most of a build on them. Here the generated kernels and
the generated body that calls them are kept as they are, and a container without weights takes the place of the
general one. It has the same C interface, so torch's own runner loads it. Whatever is not recognised raises
:class:`Unsuitable`, and the general container is built instead.

The container also takes the tensors of many parameters in one call, one parameter's behind the other's, and the
coefficients once, at the end. Where every element is updated from itself alone, all parameters are cut into slices,
and the threads take slice after slice: one start of the threads a step, and nobody waits between parameters. Otherwise
large parameters are updated one after the other by all threads, small ones side by side, a thread each.
"""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import torch

from optlang.backends.loading import toolchain

#: The versions of torch whose runner has been tried with this shell. What the two say to each other is no public
#: interface: on any other version kernels go through ``torch.compile``. Add one when `make test-newest` is green on it.
TRIED = ("2.11", "2.13", "2.14")

HEAD = """
#include <torch/csrc/inductor/aoti_runtime/utils.h>
#include <algorithm>
#include <exception>
#include <string>
#include <utility>
#include <vector>

using AOTIRuntimeError = int32_t;
struct AOTIProxyExecutorOpaque;
using AOTIProxyExecutorHandle = AOTIProxyExecutorOpaque*;

namespace torch::aot_inductor {
@CACHES@
using DeviceStreamType = void*;
struct AOTInductorModel {
  int32_t device_idx_{0};
  void run_impl(AtenTensorHandle*, AtenTensorHandle*, DeviceStreamType, AOTIProxyExecutorHandle);
  void _const_run_impl(std::vector<AtenTensorHandle>&, DeviceStreamType, AOTIProxyExecutorHandle);
};
} // namespace torch::aot_inductor

"""

#: Between the kernels and the interface: how a call with the tensors of many parameters is carried out.
WHOLE = """
namespace {
thread_local std::string last_error;
using Model = torch::aot_inductor::AOTInductorModel;
struct NoGrad {
  bool before = aoti_torch_grad_mode_is_enabled();
  NoGrad() { aoti_torch_grad_mode_set_enabled(false); }
  ~NoGrad() { aoti_torch_grad_mode_set_enabled(before); }
};
// Waking other threads costs more than a small tensor's arithmetic, and much more when the processors are busy.
struct OneThread {
  int before = omp_get_max_threads();
  OneThread() { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before); }
};
constexpr size_t tensors = @TENSORS@; // of one parameter
constexpr int64_t grain = @GRAIN@;

// Updates one parameter; the handles of its tensors are used up, even if it fails.
bool update(Model* model, AtenTensorHandle* inputs, AtenTensorHandle c, void* stream, std::string* error) {
  try {
    AtenTensorHandle own[tensors + 1], none[1] = {nullptr};
    for (size_t i = 0; i < tensors; ++i) own[i] = std::exchange(inputs[i], nullptr);
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(c, &own[tensors]));
    model->run_impl(own, none, stream, nullptr);
    return true;
  } catch (const std::exception& e) {
    *error = e.what();
  } catch (...) {
    *error = "unknown exception";
  }
  return false;
}

bool update_all(Model* model, AtenTensorHandle* inputs, size_t count, AtenTensorHandle c, void* stream) {
  NoGrad guard;
  std::vector<AtenTensorHandle*> small;
  int64_t elements = 0;
  bool good = true;
  for (size_t i = 0; i < count; ++i) {
    int64_t size = 0;
    aoti_torch_get_numel(inputs[i * tensors], &size);
    if (size < grain) {
      small.push_back(inputs + i * tensors);
      elements += size;
    } else {
      good &= update(model, inputs + i * tensors, c, stream, &last_error);
    }
  }
  if (small.size() < 2 || elements < grain) {
    OneThread alone;
    for (auto* one : small) good &= update(model, one, c, stream, &last_error);
    return good;
  }
  std::string first;
  #pragma omp parallel for schedule(dynamic, 4)
  for (size_t i = 0; i < small.size(); ++i) {
    NoGrad inner;
    std::string error;
    if (!update(model, small[i], c, stream, &error)) {
      #pragma omp critical
      first = error;
    }
  }
  if (!first.empty()) last_error = first;
  return good && first.empty();
}
} // namespace
"""

#: The same where every element is updated from itself alone: in slices, which any thread may take.
SLICED = """
namespace {
thread_local std::string last_error;
using Model = torch::aot_inductor::AOTInductorModel;
constexpr size_t tensors = @TENSORS@; // of one parameter
constexpr int64_t grain = @GRAIN@, longest = @SLICE@;

struct Slice {
  const Part* parts;
  int64_t begin, size;
};

void update(Model* model, const Slice& slice, void* c) {
  Part own[tensors + 1];
  for (size_t i = 0; i < tensors; ++i) {
    const Part& whole = slice.parts[i];
    own[i] = {static_cast<char*>(whole.data) + slice.begin * whole.width, slice.size, whole.width};
  }
  own[tensors] = {c, 0, 0};
  model->run_impl(reinterpret_cast<AtenTensorHandle*>(own), nullptr, nullptr, nullptr);
}

bool update_all(Model* model, AtenTensorHandle* inputs, size_t count, AtenTensorHandle c, void*) {
  std::vector<Part> parts(count * tensors);
  int64_t elements = 0;
  void* coefficients = nullptr;
  for (size_t i = 0; i < parts.size(); ++i) {
    RAIIAtenTensorHandle used(std::exchange(inputs[i], nullptr));
    int32_t dtype = 0;
    aoti_torch_get_data_ptr(used.get(), &parts[i].data);
    aoti_torch_get_dtype(used.get(), &dtype);
    parts[i].width = static_cast<int64_t>(aoti_torch_dtype_element_size(dtype));
    if (i % tensors == 0) {
      aoti_torch_get_numel(used.get(), &parts[i].size);
      elements += parts[i].size;
    }
  }
  aoti_torch_get_data_ptr(c, &coefficients);
  // Several slices for each thread, so that whoever is held up does fewer of them; none so short that it costs more
  // to hand out than to do, or that much of it is prefetched by the one before.
  int64_t length = elements / (8 * omp_get_max_threads()) + 1;
  length = std::min(std::max((length + 63) / 64 * 64, grain), longest);
  std::vector<Slice> slices;
  slices.reserve(count + elements / length);
  for (size_t i = 0; i < count; ++i) {
    const Part* own = &parts[i * tensors];
    for (int64_t begin = 0; begin < own->size; begin += length)
      slices.push_back({own, begin, std::min(length, own->size - begin)});
  }
  // Small tensors are taken several at a time. Waking other threads costs more than a little arithmetic.
  int64_t several = std::max<int64_t>(1, slices.size() * (grain / 4) / (elements + 1));
  #pragma omp parallel for schedule(dynamic, several) if (elements >= grain)
  for (size_t i = 0; i < slices.size(); ++i) update(model, slices[i], coefficients);
  return true;
}
} // namespace
"""

#: What a generated body takes for its tensors where they come in slices: an address and a length.
PARTS = """
struct Part {
  void* data;
  int64_t size, width;
  const int64_t* sizes() const { return &size; }
  void* data_ptr() const { return data; }
  void reset() {}
};
struct Parts {
  const Part* first;
  Part operator[](size_t i) const { return first[i]; }
  void clear() {}
};
inline Parts parts_of(AtenTensorHandle* inputs) { return {reinterpret_cast<const Part*>(inputs)}; }
"""

TAIL = """
extern "C" {
AOTIRuntimeError AOTInductorModelContainerCreateWithDevice(void** model, size_t, const char*, const char*) {
  *model = new Model();
  return 0;
}
AOTIRuntimeError AOTInductorModelContainerDelete(void* model) {
  delete static_cast<Model*>(model);
  return 0;
}
AOTIRuntimeError AOTInductorModelContainerRun(
    void* model, AtenTensorHandle* inputs, size_t n, AtenTensorHandle*, size_t, void* stream,
    AOTIProxyExecutorHandle) {
  // What is taken is set to null: newer runners delete the handles that are left.
  torch::aot_inductor::RAIIAtenTensorHandle c(std::exchange(inputs[n - 1], nullptr));
  return update_all(static_cast<Model*>(model), inputs, (n - 1) / tensors, c.get(), stream) ? 0 : 1;
}
AOTIRuntimeError AOTInductorModelContainerRunSingleThreaded(
    void* model, AtenTensorHandle* inputs, size_t n, AtenTensorHandle* outputs, size_t k, void* stream,
    AOTIProxyExecutorHandle proxy) {
  return AOTInductorModelContainerRun(model, inputs, n, outputs, k, stream, proxy);
}
AOTIRuntimeError AOTInductorModelContainerGetNumOutputs(void*, size_t* count) { *count = 0; return 0; }
AOTIRuntimeError AOTInductorModelContainerGetNumConstants(void*, size_t* count) { *count = 0; return 0; }
AOTIRuntimeError AOTInductorModelContainerGetCallSpec(void*, const char** in, const char** out) {
  *in = *out = "";
  return 0;
}
AOTIRuntimeError AOTInductorGetLastError(const char** message) { *message = last_error.c_str(); return 0; }
@ABSENT@
}
"""

#: Elements below which a parameter is updated by one thread; the same as in ATen.
GRAIN = 32768
#: Elements of a slice at most.
SLICE = 65536
#: Bytes by which loops ask for memory in advance: some dozen streams are more than processors foresee by themselves.
AHEAD = 2048

#: Parts of the interface that deal with weights; a runner looks them up and an update never needs them.
ABSENT = (
    "CreateWithExternalConstants",
    "DidCallLoadConstants",
    "ExtractConstantsMap",
    "FreeInactiveConstantBuffer",
    "GetConstantDtype",
    "GetConstantName",
    "GetConstantOriginalFQN",
    "GetConstantsBlobSize",
    "RunConstantFolding",
    "SwapConstantBuffer",
    "UpdateConstantBuffer",
    "UpdateConstantBufferFromCpu",
    "UpdateInactiveConstantBuffer",
    "UpdateUserManagedConstantBuffer",
)


class Unsuitable(Exception):
    """The generated code has something in it that the light shell does not know."""


def is_tried() -> bool:
    """Whether this is one of the versions of torch that the shell is known to work with."""
    return ".".join(str(torch.__version__).split(".")[:2]) in TRIED


def fingerprint() -> str:
    """Return a text that differs whenever kernels would be put into another shell."""
    return repr((HEAD, WHOLE, PARTS, SLICED, TAIL, GRAIN, SLICE, AHEAD, inspect.getsource(_asking_ahead)))


def assemble(wrapper: str, kernels: str, tensors: int, sliced: bool) -> str:
    """Return one C++ file from the two that Inductor generated.

    Args:
        wrapper: The generated container.
        kernels: The generated kernels.
        tensors: How many tensors an update takes besides the coefficients.
        sliced: Whether tensors may be updated in slices; the kernels are to use one thread then.

    Raises:
        Unsuitable: If the text is not of the shape that is expected.
    """
    marker, function = "using namespace torch::aot_inductor;", "void AOTInductorModel::run_impl("
    if wrapper.count(function) != 1 or marker not in wrapper or "proxy_executor_call" in wrapper:
        raise Unsuitable("the wrapper")
    body = wrapper[wrapper.rindex(marker) : wrapper.index(function)]
    checks = body.find("AOTI_NOINLINE static void check_input_0")
    if checks >= 0:  # they are off unless an environment variable is set, and the runtime checks its tensors itself
        body = body[:checks]
    run = wrapper[wrapper.index(function) :]
    for line in (r"__check_inputs_outputs\(", r".*this->kernels_", r"if \(_check_aoti_runtime_check_inputs_env\(\)\)"):
        run = re.sub(rf"^\s*{line}.*$", "", run, flags=re.MULTILINE)
    if "this->" in run.replace("this->device_idx_", "") or "constants_" in run:
        raise Unsuitable("members of the model")
    _check_gradient(run)
    if sliced:
        run = _taking_parts(run)
    caches = "\n".join(re.findall(r"^CACHE_TORCH_\w+\(\w+\);", wrapper, flags=re.MULTILINE))
    absent = "\n".join(f"AOTIRuntimeError AOTInductorModelContainer{name}() {{ return 1; }}" for name in ABSENT)
    absent += "\nAOTIRuntimeError AOTInductorModelUpdateConstantsFromBlob() { return 1; }"
    tail = (SLICED if sliced else WHOLE) + TAIL
    numbers = {"@GRAIN@": GRAIN, "@SLICE@": SLICE, "@TENSORS@": tensors}
    for mark, text in (("@ABSENT@", absent), *numbers.items()):
        tail = tail.replace(mark, str(text))
    # Side by side, kernels must not share the place where divisions of integers by zero (they have none) are noted.
    kernels = re.sub(r"^.*inductor_cpu_(throw_if_)?integer_div_error.*$", "", kernels, flags=re.MULTILINE)
    kernels = _asking_ahead(kernels)
    return kernels + HEAD.replace("@CACHES@", caches) + (PARTS if sliced else "") + body + run + tail


def _asking_ahead(kernels: str) -> str:
    """Return kernels whose loops over one dimension prefetch what they read; what is not recognised stays as it is."""

    def loop(found: re.Match[str]) -> str:
        head, index, body = found.groups()
        read = sorted(set(re.findall(rf"loadu\((\w+) \+ static_cast<int64_t>\({index}\),", body)))
        hints = "".join(
            f"\n__builtin_prefetch(reinterpret_cast<const char*>({name} + {index}) + {AHEAD});" for name in read
        )
        return f"{head}{hints}{body}"

    # From the head of a loop to that of the next one, or to the end of the function.
    return re.sub(
        r"(for\(int64_t (x\d+)=[^\n]*\n\s*\{)((?:(?!for\(int64_t )[^\x00])*?)(?=for\(int64_t |\nextern |\Z)",
        loop,
        kernels,
    )


def _taking_parts(run: str) -> str:
    """Return a generated body that takes :data:`PARTS` in place of tensors.

    Raises:
        Unsuitable: If it does more than hand addresses and lengths to kernels.
    """
    text, found = re.subn(r"steal_from_raw_handles_to_raii_handles\((\w+), \d+\)", r"parts_of(\1)", run)
    if found != 1 or "aoti_torch_" in text or "#pragma omp" in text:
        raise Unsuitable("more than one pass over elements")
    return text


def _check_gradient(run: str) -> None:
    """Raise Unsuitable unless the second input, the gradient, is used through its address only.

    The runtime counts on it, and hands over gradients in shapes of their own.
    """
    found = re.search(r"auto (\w+) = std::move\(inputs\[1\]\);", run)
    rest = run if found is None else run.replace(found.group(0), "")
    name = r"inputs\[1\]" if found is None else rf"\b{found.group(1)}\b(?!\.data_ptr\(\)|\.reset\(\))"
    if re.search(name, rest):
        raise Unsuitable("the shape of the gradient")


def build(wrapper: str, kernels: str, tensors: int, sliced: bool, folder: Path) -> Path:
    """Compile the two generated texts into one library in ``folder`` and return its path.

    The compiler is called in the folder with names alone: a command line of Inductor's falls apart where a path has a
    blank or a quotation mark.

    Raises:
        RuntimeError: If the compiler refuses; carries what it printed.
    """
    from torch._inductor import cpp_builder, cpu_vec_isa

    source = folder / "kernel.cpp"
    source.write_text(assemble(wrapper, kernels, tensors, sliced), encoding="utf-8")
    options: Any = cpp_builder.CppTorchDeviceOptions(
        vec_isa=cpu_vec_isa.pick_vec_isa(), device_type="cpu", aot_mode=True, extra_flags=["-w"]
    )
    builder = cpp_builder.CppBuilder(name="kernel", sources=source.name, BuildOption=options)
    command = shlex.split(builder.get_command_line())
    toolchain.compile_in(folder, command)
    return folder / builder.get_target_file_path()
