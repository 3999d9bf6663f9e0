//! Bodies: how they arrive, and how a filter changes them.

use crate::abi::{self, Buffer, shown};
use crate::state;
use crate::{Check, Next};

pub(crate) fn run(check: &Check) -> Option<Next> {
    Some(match check.name.as_str() {
        "passing" | "replaced" | "prepended" | "response_prepended" => Next::Pass,
        "read" | "trailers" => Next::Pause,
        "too_early" => Next::Answer(shown(&abi::buffer(Buffer::RequestBody, 0, 10))),
        _ => return None,
    })
}

pub(crate) fn on_request_body(id: u32, size: usize, end_of_stream: bool) -> Next {
    match state::check_name(id).as_str() {
        "pauses/gather" if end_of_stream => {
            state::await_ticks(id, 0);
            return Next::Answer(format!("gathered {size} bytes"));
        }
        "bodies/read" if end_of_stream => {
            let some = |start, most| shown(&abi::buffer(Buffer::RequestBody, start, most));
            return Next::Answer(format!(
                "all {}; more than all {}; a part {}; beyond the end {}",
                some(0, size),
                some(0, size + 10),
                some(1, 3),
                some(size + 1, 3)
            ));
        }
        "pauses/gather" | "pauses/hold_then_answer" | "bodies/read" => return Next::Pause,
        "bodies/trailers" => {
            state::note(id, if end_of_stream { "end of body" } else { "more of it" });
            return Next::Pause;
        }
        "pauses/hold" => {
            let sum = state::add_body(id, size);
            if end_of_stream {
                state::note(id, &format!("body {sum}"));
            }
        }
        "bodies/replaced" if size > 0 => {
            abi::set_buffer(Buffer::RequestBody, 0, size, b"x");
        }
        "bodies/prepended" if size > 0 && state::add_body(id, size) == size => {
            abi::set_buffer(Buffer::RequestBody, 0, 0, b">");
        }
        _ => {}
    }
    Next::Pass
}

pub(crate) fn on_request_trailers(id: u32) -> Next {
    match state::check_name(id).as_str() {
        "bodies/trailers" => Next::Answer(state::trace(id)),
        _ => Next::Pass,
    }
}

pub(crate) fn on_response_body(check: &str, size: usize) {
    if check == "bodies/response_prepended" && size > 0 {
        abi::set_buffer(Buffer::ResponseBody, 0, 0, b">");
    }
}
