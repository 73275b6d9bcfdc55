"""Print the TF_CONFIG of one worker: python tf_config.py NUMBER HOST …, with the workers' hosts in one order everywhere."""

import json
import sys

PORT = 2222


def tf_config(number: int, hosts: list[str]) -> str:
    """What worker `number`, from 0, must find in its environment."""
    addresses = [f"{host}:{PORT}" for host in hosts]
    return json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": number}})


if __name__ == "__main__":
    print(tf_config(int(sys.argv[1]), sys.argv[2:]))
