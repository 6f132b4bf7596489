//! What safe wrappers do not offer: the allocator's own collection, and advice to the kernel about the program's code.
#![allow(unsafe_code)]

use nix::sys::mman::{MmapAdvise, madvise};
use std::ffi::c_void;
use std::ptr::NonNull;

pub fn collect() {
    // SAFETY: takes no pointer, and frees only what no allocation uses; it may be called from any thread at any time.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

/// Takes the pages from `start` to `end` out of this process until they are used again. The range must be a read-only or
/// executable mapping of a file that lasts as long as the process and was never written, which the caller knows from
/// `/proc/self/smaps`.
pub fn unmap_until_used(start: usize, end: usize) {
    let Some(address) = NonNull::new(start as *mut c_void) else { return };
    // SAFETY: pages of a private file mapping that the process cannot write hold nothing but the file: the kernel reads them
    // again at the next use, so no memory of the program changes. Who writes into its code from outside meanwhile, as a debugger
    // does for a breakpoint and the kernel for a uprobe, loses what was written: a trap that is no longer met, nothing else.
    let _ = unsafe { madvise(address, end.saturating_sub(start), MmapAdvise::MADV_DONTNEED) };
}
