"""A GGUF model as a folder that OpenVINO reads, its weights in INT8 or INT4 by NNCF."""
