"""Examples become updates of rows and weights, and versions of both.

`worker` takes steps, `online` ties them to a log and to publications, `retrain` begins with the archive. `models` and `losses` are
what is trained; `rows` connects ids with tables, `flat_adam` moves dense weights, `norm` keeps dense features on one scale,
`newcomers` trains default rows. `cut` is the one place where a version is cut, past the `guards`; `dense_cadence` says when
dense weights go out, `recovery` finds the newest whole version, `growth` takes added features in.
"""
