"""The agent: one process of a host that signs and verifies requests for programs without the SDK.

`application` answers the calls, `questions` reads their JSON, `original` reads the questions of proxies, `listening`
makes the socket and says who may connect, `serving` runs the application on it. ``peerseal agent`` puts them together
(docs/how-to/agent.md, docs/adr/0029-the-agent.md).
"""
