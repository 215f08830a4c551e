"""Giving up root for good, before anything listens (S13)."""

import ctypes
import errno
import os
import pwd
import struct

from telehandler.common.errors import TelehandlerError

_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 24, 38
_SYS_KEYCTL, _KEYCTL_JOIN_SESSION_KEYRING = 250, 1  # x86_64's, the helper's only machine
_CAPSET_VERSION_3, _CAPSET_BYTES = 0x20080522, 24  # effective, permitted, inheritable: 64 bits each
_libc = ctypes.CDLL(None, use_errno=True)


def server_user(wanted: str | None) -> pwd.struct_passwd:
    """The user to serve as: `wanted`, else the user behind sudo, else telehandler, else nobody; never root."""
    names = [wanted] if wanted else [os.environ.get("SUDO_USER", ""), "telehandler", "nobody"]
    for name in names:
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            if wanted:
                raise TelehandlerError(f"there is no user {wanted}: name another with --user") from None
            continue
        if user.pw_uid != 0:
            return user
        if wanted:
            raise TelehandlerError("the server never runs as root: name an unprivileged user with --user")
    raise TelehandlerError("no unprivileged user to serve as: name one with --user")


def drop_to(user: pwd.struct_passwd) -> None:
    """Becomes `user` with no other group, then reads back that it is so."""
    number = 0
    while _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) == 0:  # to the kernel's last
        number += 1
    if ctypes.get_errno() != errno.EINVAL:
        raise TelehandlerError("the capability bounding set cannot be emptied")
    os.setgroups([])
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    if os.getresuid() != (user.pw_uid,) * 3 or os.getresgid() != (user.pw_gid,) * 3 or os.getgroups():
        raise TelehandlerError("root was not given up")
    lock_down()


def hide() -> None:
    """No other process of this user may read or trace this one, nor does it dump core."""
    if _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise TelehandlerError("prctl failed: the kernel is too old")


def lock_down() -> None:
    """No capability, none to be gained, no core dump, no debugger, no keys of who started it.

    Ambient capabilities go with the permitted.
    """
    if _libc.capset(struct.pack("=Ii", _CAPSET_VERSION_3, 0), bytes(_CAPSET_BYTES)):
        raise TelehandlerError("capset failed")
    # A session keyring is inherited, and who has it has the keys in it, whatever his uid: root's stay behind.
    if _libc.syscall(_SYS_KEYCTL, _KEYCTL_JOIN_SESSION_KEYRING, None) < 0:
        raise TelehandlerError("a keyring of its own cannot be made: the kernel or a seccomp filter denies keyctl")
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise TelehandlerError("prctl failed: the kernel is too old")
