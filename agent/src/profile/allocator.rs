//! What stands between the program and the system's allocator: it tells [`super::heap`] of what is taken and given back, and where.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::{c_int, c_void};

use super::heap;

/// The system's allocator, which a heap profile can look at while it is taken. Beside that it costs a load and a branch.
pub struct FollowedAllocator;

#[expect(unsafe_code, reason = "an allocator is unsafe to write; this one hands everything to the system's")]
// SAFETY: every call goes to `System` with the caller's own arguments, and its answer goes back unchanged. What is done beside that
// touches none of the memory, only its address as a number, and does not unwind.
unsafe impl GlobalAlloc for FollowedAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promised.
        let address = unsafe { System.alloc(layout) };
        heap::taken(address.addr(), layout.size());
        address
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promised.
        let address = unsafe { System.alloc_zeroed(layout) };
        heap::taken(address.addr(), layout.size());
        address
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        // Before: the address may be another's at once.
        heap::given_back(address.addr());
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(address, layout) }
    }

    unsafe fn realloc(&self, address: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let followed = heap::given_back(address.addr());
        // SAFETY: as the caller promised.
        let moved = unsafe { System.realloc(address, layout, size) };
        if moved.is_null() {
            heap::put_back(address.addr(), followed);
        } else {
            heap::taken(moved.addr(), size);
        }
        moved
    }
}

/// The calls that lead here, innermost first; how many fit into `into`.
#[expect(unsafe_code, reason = "std knows the stack, but tells it only with names, which takes memory")]
pub(super) fn stack(into: &mut [u64]) -> usize {
    struct Walk<'a> {
        into: &'a mut [u64],
        depth: usize,
    }

    extern "C" fn step(frame: *mut c_void, walk: *mut c_void) -> c_int {
        // SAFETY: it is the `Walk` that was given to `_Unwind_Backtrace` below, and nobody else has it meanwhile.
        let walk = unsafe { &mut *walk.cast::<Walk<'_>>() };
        let Some(place) = walk.into.get_mut(walk.depth) else { return END_OF_STACK };
        // SAFETY: `frame` is what the unwinder gave to its callback.
        *place = unsafe { _Unwind_GetIP(frame) } as u64;
        walk.depth += 1;
        GO_ON
    }

    let mut walk = Walk { into, depth: 0 };
    // SAFETY: the callback does not unwind, and `walk` outlives the call.
    unsafe { _Unwind_Backtrace(step, (&raw mut walk).cast()) };
    walk.depth
}

/// `_URC_NO_REASON` and `_URC_END_OF_STACK` (Itanium C++ ABI: Exception Handling, 1.2).
const GO_ON: c_int = 0;
const END_OF_STACK: c_int = 5;

#[expect(unsafe_code, reason = "the unwinder that std itself is linked with")]
unsafe extern "C-unwind" {
    fn _Unwind_Backtrace(step: extern "C" fn(*mut c_void, *mut c_void) -> c_int, walk: *mut c_void) -> c_int;
    fn _Unwind_GetIP(frame: *mut c_void) -> usize;
}
