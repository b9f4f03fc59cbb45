#!/bin/sh
# On a machine with internet access: pull the models and pack them.
set -eu

ollama-warmup pull llama3.2:1b nomic-embed-text
tar -C "$HOME/.ollama/models" -cf models.tar blobs manifests
