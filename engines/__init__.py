"""Models and the engines that run them: raw uint8 patches in, probabilities out. Knows nothing of slides."""
