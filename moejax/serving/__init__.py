"""An OpenAI-compatible server: continuous batching on the compiled steps of `decode`, behind HTTP.

From the bottom up: `slots` (the rows on the devices), `jobs` (requests and what they are told), `engine` (the thread
that feeds, steps and delivers), `openai_*` (requests and answers in OpenAI's words), `app` (the routes), `server`
(socket, signals, end).
"""
