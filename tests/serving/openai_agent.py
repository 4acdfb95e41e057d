"""An agent that knows nothing of trl-ext: the official `openai` client, a small game, and two plain requests.

    python openai_agent.py URL THREADS [TOKEN]

It plays episodes until the server has gone, each in a conversation of its own: a walk on a 4x4 grid, a letter a turn.
"""

import http.client
import json
import random
import sys
import threading
import time
import urllib.error
import urllib.request

import openai

MOVES = {"u": (0, 1), "d": (0, -1), "l": (-1, 0), "r": (1, 0)}
CELLS = [(x, y) for x in range(4) for y in range(4)]


def post(url, token, body):
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            if error.code != 429:  # too many requests: a result that is not said again is lost, and its episode waits
                raise
            time.sleep(float(error.headers.get("Retry-After", 1)))


def distance(one, other):
    return abs(one[0] - other[0]) + abs(one[1] - other[1])


def play(client, seed):
    """A walk with the policy: the reward of each turn, and whether it arrived."""
    far = [(one, other) for one in CELLS for other in CELLS if distance(one, other) >= 5]
    place, goal = random.Random(seed).choice(far)
    messages, rewards = [], []
    while len(rewards) < 6 and place != goal:
        text = "abcd"[place[0]] + str(place[1] + 1) + ">" + "abcd"[goal[0]] + str(goal[1] + 1) + ":"
        messages.append({"role": "user", "content": text})
        reply = client.chat.completions.create(model="policy", messages=messages, max_tokens=1)
        word = reply.choices[0].message.content
        messages.append({"role": "assistant", "content": word})
        before, step = distance(place, goal), MOVES.get(word.strip(), (0, 0))
        moved = (place[0] + step[0], place[1] + step[1])
        place = moved if moved in CELLS else place
        rewards.append(0.1 * (before - distance(place, goal)) + float(place == goal))
    return rewards, place == goal


def work(url, token, name):
    misses, client = 0, openai.OpenAI(base_url=url, api_key=token)
    while misses < 50:
        try:
            episode = post(f"{url}/episodes/claim", token, {"agent": name})
            rewards, success = play(client.with_options(base_url=episode["base_url"]), episode["row"]["seed"])
            result = {"rewards": rewards, "success": success, "metrics": {"turns_taken": len(rewards)}}
            post(f"{url}/episodes/{episode['lease']}/result", token, result)
            misses = 0
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
            time.sleep(random.uniform(0.2, 0.6))  # there is no episode to play now
        except (OSError, http.client.HTTPException, openai.APIError) as error:
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            misses += 1
            time.sleep(0.1)


if __name__ == "__main__":
    url, threads, *rest = sys.argv[1:]
    agents = [
        threading.Thread(target=work, args=(url, rest[0] if rest else "none", f"agent-{number}"))
        for number in range(int(threads))
    ]
    for agent in agents:
        agent.start()
    for agent in agents:
        agent.join()
