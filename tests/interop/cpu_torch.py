"""Make PyPI's torch import on a machine without CUDA, without the 2 GB of CUDA it asks for.

`libtorch_python.so` refers to about 130 functions of CUDA libraries that nothing calls on a CPU. The
torch of this environment gets one small library that defines them all, nearly all as the end of
the process, in place of those libraries. Run by the environment's own Python; doing it twice does nothing more.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

SITE = Path(sysconfig.get_path("platlib"))
LIB = SITE / "torch/lib"
STUB = LIB / "libtorch_cuda.so"
ALSO = ("libcudnn.so.9", "libcufile.so.0")
UNUSED = ("libtorch_cuda_linalg.so", "libtorch_nvshmem.so")
KEPT = [LIB / name for name in ("libtorch_cpu.so", "libc10.so", "libc10_cuda.so", "libshm.so")]
KEPT += sorted((SITE / "nvidia/cu13/lib").glob("lib*.so.13"))


def symbols(library, which):
    """The dynamic symbols that a library defines or asks for: their names with their versions."""
    lines = subprocess.run(["nm", "-D", which, library], check=True, capture_output=True, text=True).stdout
    return dict(line.split()[-1].replace("@@", "@").partition("@")[::2] for line in lines.splitlines())


HEAD = """
void abort(void);
static void *place;
extern void *_ZTVN10__cxxabiv117__class_type_infoE[];
"""


def stand_in(name):
    """C that defines a symbol well enough for torch to be imported."""
    if name.startswith("_ZTI"):  # The type of a class, which pybind11 registers under its name.
        return f'void *{name}[] = {{ _ZTVN10__cxxabiv117__class_type_infoE + 2, "{name[4:]}", 0 }};'
    if name.startswith("_ZTV"):  # The virtual functions of a class that is never made.
        return f"void *{name}[64];"
    if name == "_ZN4c10d15get_gil_checkerEv":  # Called at import: a reference to a pointer.
        return f"void *{name}(void) {{ return &place; }}"
    return f"void {name}(void) {{ abort(); }}"


def main():
    if STUB.stat().st_size < 1 << 20:
        return
    wanted = symbols(LIB / "libtorch_python.so", "--undefined-only")
    there = set().union(*(symbols(library, "--defined-only") for library in KEPT))
    cuda = set().union(*(symbols(LIB / name, "--defined-only") for name in (STUB.name, *UNUSED))) - there
    wanted = {name: wanted[name] for name in sorted(wanted) if name in cuda or name.startswith(("cudnn", "cuFile"))}
    source = HEAD + "".join(stand_in(name) + "\n" for name in wanted)
    versions = {version: [n for n in wanted if wanted[n] == version] for version in set(wanted.values()) - {""}}
    script = "".join(f"{version} {{ {'; '.join(names)}; }};\n" for version, names in sorted(versions.items()))
    with tempfile.NamedTemporaryFile("w", suffix=".map") as file:
        file.write(script)
        file.flush()
        options = ["-shared", "-fPIC", "-w", "-fno-builtin", f"-Wl,--version-script={file.name}"]
        subprocess.run(["cc", *options, "-x", "c", "-", "-lstdc++", "-o", f"{STUB}.new"], input=source, text=True, check=True)
    for name in ALSO:
        (LIB / name).unlink(missing_ok=True)
        (LIB / name).symlink_to(STUB.name)
    os.replace(f"{STUB}.new", STUB)
    for name in UNUSED:
        (LIB / name).unlink(missing_ok=True)
    print(f"torch: {len(wanted)} functions of CUDA stand in for 2 GB of it", file=sys.stderr)


if __name__ == "__main__":
    main()
