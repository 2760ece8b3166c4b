#!/bin/sh
# Builds llama.cpp once, from the source that llama-cpp-python's sdist carries: the Python package with its server, for
# the extra `llama-cpp`, and llama.cpp's own `llama-server`. All of it stays in build/llama-cpp/; venv/ is an
# environment of its own, with the node's own (VENV, default .venv) behind it, and models/ holds SmolLM2 with its GGUF.
# About 15 minutes of CPU time, for this processor alone (-march=native), and 1 GB; does nothing when it is in place.
# Needs g++; takes cmake and ninja from PATH, or else their wheels. Run from anywhere.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
place="$root/build/llama-cpp"
version=0.3.36
checksum=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
stamp="$place/installed"
want="llama-cpp-python $version, llama-server, smollm2, 2"

if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
    exit 0
fi
command -v g++ >/dev/null || { echo "llama.cpp: g++ is not on PATH; on Debian: apt-get install g++" >&2; exit 1; }
rm -f "$stamp"
mkdir -p "$place"
cd "$place"
echo "llama.cpp: building into build/llama-cpp (about 15 minutes of CPU time, once)"
from=$(cd "$root" && cd "${VENV:-.venv}" && pwd)
[ -x venv/bin/python ] || "$from/bin/python" -m venv venv
pip="venv/bin/python -m pip --disable-pip-version-check"
$pip install --quiet pip==26.3 scikit-build-core==1.1.2
command -v cmake >/dev/null || $pip install --quiet cmake
command -v ninja >/dev/null || $pip install --quiet ninja
PATH="$place/venv/bin:$PATH"
sdist="llama_cpp_python-$version.tar.gz"
[ -e "$sdist" ] || $pip download --quiet --no-deps --no-build-isolation --no-binary llama-cpp-python --dest . \
    "llama-cpp-python==$version"
if ! echo "$checksum  $sdist" | sha256sum --check --quiet; then
    rm -f "$sdist"
    exit 1
fi
if [ ! -d "llama_cpp_python-$version" ]; then
    rm -rf unpacked && mkdir unpacked && tar xzf "$sdist" -C unpacked
    mv "unpacked/llama_cpp_python-$version" . && rmdir unpacked
fi
cat > pins <<'END'
diskcache==5.6.3
fastapi==0.165.0
Jinja2==3.1.6
numpy==2.4.6
pydantic==2.14.3
pydantic-settings==2.16.3
PyYAML==6.0.3
sse-starlette==3.7.0
starlette==1.10.0
starlette-context==0.3.6
uvicorn==0.54.0
END
$pip install --quiet --no-build-isolation --constraint pins --config-settings=build-dir="$place/cmake" \
    --config-settings=cmake.define.LLAVA_BUILD=OFF "./llama_cpp_python-$version[server]"
venv/bin/python -c "import llama_cpp.server.app" >/dev/null
there=$(venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
behind=$("$from/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "import site; site.addsitedir('$behind')" > "$there/node.pth"
venv/bin/python -c "import shoal" >/dev/null
cmake -S "llama_cpp_python-$version" -B cmake -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=ON \
    -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF >/dev/null
cmake --build cmake --target llama-server >/dev/null
ln -sf "$(find cmake -name llama-server -type f -perm -u+x | head -n 1)" llama-server
./llama-server --version >/dev/null 2>&1
SHOAL_MODELS_DIR="$place/models" venv/bin/python -c "from shoal.node.commands import main; main()" \
    models add smollm2 --data-dir "$place"
printf '%s' "$want" > "$stamp"
echo "llama.cpp: build/llama-cpp/venv and build/llama-cpp/llama-server are ready"
