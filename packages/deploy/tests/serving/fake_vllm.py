"""Takes vLLM's place in tests: a real process with the command line and the API of `vllm serve`, without a model.

FAKE_VLLM says what it does: `crash` at the start, never be `ready`, or be `deaf` to SIGTERM.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

parser = argparse.ArgumentParser()
parser.add_argument("verb", choices=["serve"])
parser.add_argument("model")
parser.add_argument("--served-model-name")
parser.add_argument("--host")
parser.add_argument("--port", type=int)
arguments, options = parser.parse_known_args()
behaviour = os.environ.get("FAKE_VLLM", "")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(200 if self.path == "/health" else 404, {})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if behaviour == "refuse":
            self.answer(400, {"error": "no such model"})
        elif self.path == "/v1/chat/completions":
            said = f"{body['model']} heard: {body['messages'][-1]['content']}"
            self.answer(200, {"choices": [{"message": {"role": "assistant", "content": said}}]})
        else:
            self.answer(200, {"choices": [{"text": f"{body['prompt']} and so on"}]})

    def answer(self, status, body):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_):
        pass


print("loading", arguments.model, *options)
if behaviour == "crash":
    print("ValueError: the model is too large")
    sys.exit(3)
if behaviour == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])  # as vLLM's engine is one
print("worker", worker.pid, flush=True)
if behaviour == "hang":
    time.sleep(600)
ThreadingHTTPServer((arguments.host, arguments.port), Handler).serve_forever()
