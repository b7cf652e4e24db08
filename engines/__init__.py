"""Models and the engines that run them: raw uint8 patches in, probabilities out. Knows nothing of slides."""

import os

# ONNX Runtime's own wheels report to their maker over the network from version 1.29 on, and keep an identifier of the
# machine. Its Privacy.md: this variable, set before the library is loaded, prevents all of it. A hospital's machine
# sends nothing anywhere unless its operator says so.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
