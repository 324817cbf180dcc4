"""A light C++ shell around Inductor's kernels.

Inductor's ahead-of-time compiler wraps a kernel into a general model container, with weights, constant folding and a
pool of models. An update has none of those, and g++ spends most of a build on them. Here the generated kernels and
the generated body that calls them are kept as they are, and a container without weights takes the place of the
general one. It has the same C interface, so torch's own runner loads it. Whatever is not recognised raises
:class:`Unsuitable`, and the general container is built instead.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

HEAD = """
#include <torch/csrc/inductor/aoti_runtime/utils.h>
#include <exception>
#include <string>

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

TAIL = """
namespace {
thread_local std::string last_error;
using Model = torch::aot_inductor::AOTInductorModel;
struct NoGrad {
  bool before = aoti_torch_grad_mode_is_enabled();
  NoGrad() { aoti_torch_grad_mode_set_enabled(false); }
  ~NoGrad() { aoti_torch_grad_mode_set_enabled(before); }
};
// Waking other threads costs more than a small tensor's arithmetic, and much more when the processors are busy.
struct Threads {
  int before = omp_get_max_threads();
  explicit Threads(AtenTensorHandle p) {
    int64_t size = 0;
    aoti_torch_get_numel(p, &size);
    if (size < @GRAIN@) omp_set_num_threads(1);
  }
  ~Threads() { omp_set_num_threads(before); }
};
} // namespace

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
    void* model, AtenTensorHandle* inputs, size_t, AtenTensorHandle* outputs, size_t, void* stream,
    AOTIProxyExecutorHandle proxy) {
  try {
    NoGrad guard;
    Threads threads(inputs[0]);
    AtenTensorHandle none[1] = {nullptr};
    static_cast<Model*>(model)->run_impl(inputs, none, stream, proxy);
    return 0;
  } catch (const std::exception& error) {
    last_error = error.what();
  } catch (...) {
    last_error = "unknown exception";
  }
  return 1;
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

#: Elements below which a kernel runs on one thread; the same as in ATen.
GRAIN = 32768

#: Parts of the interface that deal with weights; a runner looks them up and an update never needs them.
ABSENT = (
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


def assemble(wrapper: str, kernels: str) -> str:
    """Return one C++ file from the two that Inductor generated.

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
    caches = "\n".join(re.findall(r"^CACHE_TORCH_\w+\(\w+\);", wrapper, flags=re.MULTILINE))
    absent = "\n".join(f"AOTIRuntimeError AOTInductorModelContainer{name}() {{ return 1; }}" for name in ABSENT)
    absent += "\nAOTIRuntimeError AOTInductorModelUpdateConstantsFromBlob() { return 1; }"
    tail = TAIL.replace("@ABSENT@", absent).replace("@GRAIN@", str(GRAIN))
    return kernels + HEAD.replace("@CACHES@", caches) + body + run + tail


def _check_gradient(run: str) -> None:
    """Raise Unsuitable unless the second input, the gradient, is used through its address only.

    The runtime counts on it, and hands over gradients in shapes of their own.
    """
    found = re.search(r"auto (\w+) = std::move\(inputs\[1\]\);", run)
    rest = run if found is None else run.replace(found.group(0), "")
    name = r"inputs\[1\]" if found is None else rf"\b{found.group(1)}\b(?!\.data_ptr\(\)|\.reset\(\))"
    if re.search(name, rest):
        raise Unsuitable("the shape of the gradient")


def build(wrapper: str, kernels: str, folder: Path) -> Path:
    """Compile the two generated texts into one library in ``folder`` and return its path."""
    from torch._inductor import cpp_builder, cpu_vec_isa

    source = folder / "kernel.cpp"
    source.write_text(assemble(wrapper, kernels), encoding="utf-8")
    options: Any = cpp_builder.CppTorchDeviceOptions(
        vec_isa=cpu_vec_isa.pick_vec_isa(), device_type="cpu", aot_mode=True, extra_flags=["-w"]
    )
    builder = cpp_builder.CppBuilder(name="kernel", sources=str(source), output_dir=str(folder), BuildOption=options)
    builder.build()
    return Path(builder.get_target_file_path())
