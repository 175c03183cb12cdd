"""Rows: the cuckoo table, epochs, the delta log and its followers.

`table` is the typed face of the C++ table. `delta_log` writes versions, `compaction` folds them (from files to files, so in any
thread), `history` finds the files of a version, `follower` follows the newest, `retention` says what may be deleted.
`manifest` and `delta` are the formats, `form` compares configurations. `files` is a local folder, `object_files` a bucket,
`signed_files` either of them where strangers may write; `checksum` is what replicas compare their rows with.
"""
