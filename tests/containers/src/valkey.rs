//! Valkey in place of Redis, as the comment in each Compose file describes.

use std::fs;

use e2e::client::Request;

use crate::Progress;
use crate::clients::{self, await_redis};
use crate::production;

pub(crate) fn run(progress: &mut Progress) {
    let file = "deploy/compose/production.yml";
    let path = progress.folder.join(file);
    let text = fs::read_to_string(&path).expect(file);
    let (_, image) = text.split_once("# Or Valkey: image ").expect("the comment that names the choice");
    let image = image.split(',').next().expect("an image");
    let redis_image = text.lines().find_map(|line| line.strip_prefix("    image: redis:")).expect("an image");
    let changes = [
        (&*format!("image: redis:{redis_image}"), &*format!("image: {image}")),
        ("user: redis", "user: valkey"),
        ("exec redis-server", "exec valkey-server"),
        (") redis-cli", ") valkey-cli"),
    ];
    progress.edit(file, &changes);
    let compose = production::compose(progress);
    compose.run_script("deploy/compose/make-secrets");
    compose.run(&["up", "--detach", "--scale", "limiter=1"]);
    compose.await_healthy("redis", 1);
    await_redis("connected");
    let response = clients::send(&Request::get("/test").key("pro"));
    assert_eq!((response.status, response.tier().as_str()), (200, "pro"));
    let cli = "REDISCLI_AUTH=$(cat /run/secrets/redis_password) valkey-cli HGETALL rate_limit:pro";
    let hash = compose.exec("redis", &["sh", "-c", cli]);
    assert_eq!(hash.lines().step_by(2).collect::<Vec<_>>(), ["tokens", "last_refill"], "{hash}");
    compose.down();
    fs::write(&path, text).expect("written");
    progress.passed("production up again after down, with Valkey in place of Redis");
}
