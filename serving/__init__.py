"""Scores from fresh rows: the replica and its HTTP service.

`replica` pulls and scores, `pulling` says when, `ranking` turns scores into answers, `freshness` knows how old everything is:
synchronous, without threads and sockets. `service` ties them together: `scoring` is the thread that scores, `batches` and `cost`
decide what is scored together and what is refused, `worker` runs the other threads. `http` and `routes` answer; `requests`,
`inputs` and `sides` turn what was sent into columns; `connections` and `listening` bound connections. `outbox` sends what was
served to the log. `shadow` scores a second version beside, and `comparison` compares the two.
"""
