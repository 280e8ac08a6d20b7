"""The system's lock on an open file or directory, which ends with its process, however that ends."""

import errno

# The errors of a file system that cannot lock.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


def take(descriptor: int) -> bool | None:
    """Whether the lock was taken, at once; None if the file system has no locks. Raises OSError for any other error."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows
        return None
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True
