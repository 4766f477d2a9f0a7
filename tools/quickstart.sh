#!/usr/bin/env bash
# From a fresh Debian 12 machine to text from a real model over HTTP: installs what is missing, builds restkv, gets the
# demo model, serves it on 127.0.0.1, streams a completion to the terminal, answers a long prompt with the full cache and
# with a budget side by side, shows how to do the same with curl and openai-python, and stops the server.
#   tools/quickstart.sh [--keep] [--port N]    --keep leaves it serving, on port 8000 unless --port says otherwise
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly binary=build/release/bin/restkv
readonly server_log=build/quickstart-server.log build_log=build/quickstart-build.log
readonly prompt="The capital of France is"
keep=0
port=""
server=""

while (( $# )); do
  case $1 in
    --keep) keep=1 ;;
    --port)
      [[ ${2:-} =~ ^[0-9]+$ ]] || { echo "quickstart: --port needs a number" >&2; exit 2; }
      port=$2
      shift
      ;;
    -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "quickstart: unknown option '$1'; see tools/quickstart.sh --help" >&2; exit 2 ;;
  esac
  shift
done
if [[ -z $port ]]; then
  # A free one, unless somebody else is to find it.
  port=0
  if (( keep )); then port=8000; fi
fi

step=""
step() {
  step=$1
  printf '%s\n' "--- $1"
}
fail() {
  printf 'quickstart: the step "%s" failed: %s\n' "$step" "$1" >&2
  printf '  what to do: %s\n' "$2" >&2
  exit 1
}

stop_server() {
  [[ -n $server ]] || return 0
  kill -TERM "$server" 2>/dev/null || true
  wait "$server" 2>/dev/null || true
  server=""
}
trap stop_server EXIT
trap 'exit 130' INT TERM

mkdir -p build

step "install what is missing"
tools/install_deps.sh --runtime || fail "see above" "repair what it says and run tools/quickstart.sh again"

step "build"
if [[ ! -f build/release/build.ninja ]]; then
  echo "(the first time takes some minutes)"
  # Without the tests, which need more packages; tools/test.sh turns them on.
  cmake --preset release -DBUILD_TESTING=OFF >"$build_log" 2>&1 || {
    tail -20 "$build_log" >&2
    fail "cmake could not configure build/release" "read $build_log; a fresh start: rm -rf build/release"
  }
fi
cmake --build build/release --target restkv >"$build_log" 2>&1 || {
  grep -E -m 5 'error:|ninja: error|FAILED' "$build_log" >&2 || tail -5 "$build_log" >&2
  fail "the compiler or ninja reported an error" "read $build_log; a fresh start: rm -rf build/release"
}

step "get the demo model"
model=$(tools/get_demo_model.sh) || fail "see above" "repair what it says and run tools/quickstart.sh again"
echo "$model"

step "serve it"
: >"$server_log"
# In a session of its own, so that a Ctrl-C that ends this script reaches the server once, from the trap.
setsid "$binary" serve demo --port "$port" >"$server_log" 2>&1 </dev/null &
server=$!
url=""
for (( i = 0; i < 600; i++ )); do
  url=$(sed -n 's/.*Listening on \(http:[^ ,]*\).*/\1/p' "$server_log" | head -1)
  if [[ -n $url ]] || ! kill -0 "$server" 2>/dev/null; then break; fi
  sleep 0.05
done
if [[ -z $url ]]; then
  tail -5 "$server_log" >&2
  if (( port )); then
    fail "the server did not start on port $port" "if the port is taken, choose another: tools/quickstart.sh --keep --port 8080"
  fi
  fail "the server did not start" "read $server_log, or run it by hand: $binary serve demo"
fi
echo "$url"

step "stream a completion"
python3 tools/stream_completion.py "$url" "$prompt" || {
  tail -5 "$server_log" >&2
  fail "no complete answer came from $url" "read $server_log"
}

step "a long prompt with the full cache and with 256 entries a head"
python3 tools/compare_budgets.py "$url" --budget 256 --records 115 --max-tokens 32 || {
  tail -5 "$server_log" >&2
  fail "no complete answer came from $url" "read $server_log"
}

if (( keep )); then
  # The server lives on when this script ends.
  disown "$server"
  pid=$server
  server=""
  echo
  echo "It is still serving. Stop it with: kill $pid"
else
  step "stop"
  stop_server
  url=http://127.0.0.1:8000
  echo
  echo "Serve it again with: $binary serve demo"
fi
cat <<END
The same with curl:

  curl $url/v1/completions -H 'Content-Type: application/json' \\
    -d '{"model": "demo", "prompt": "$prompt", "max_tokens": 64, "temperature": 0}'

and with openai-python:

  from openai import OpenAI
  client = OpenAI(base_url="$url/v1", api_key="none")
  for chunk in client.completions.create(model="demo", prompt="$prompt",
                                         max_tokens=64, temperature=0, stream=True):
      print(chunk.choices[0].text, end="", flush=True)
END
