//! The cost of a cycle must not grow with what waits behind it.

use crate::cycle::open_session;
use crate::fleet::Fleet;
use crate::mqtt::Broker;
use crate::pictures;
use crate::plot::Picture;
use crate::report::{Figure, Table};
use crate::scratch::Scratch;
use crate::statistics::Sample;
use crate::tap::Tap;
use crate::worker::{command, program, time};

const LENGTHS: [usize; 5] = [1, 10, 100, 1_000, 10_000];
const ROUNDS: usize = 30;

/// Two queues of one length, and what was measured on them.
struct Queue<'a> {
    length: usize,
    own: String,
    pool: Fleet<'a>,
    cycles: Sample,
    members: Sample,
    turns: Sample,
    hand_outs: Sample,
}

pub fn measure(broker: &Broker, scratch: &Scratch) -> (Vec<Figure>, Table, Picture) {
    let mut client = broker.client("filler");
    let mut submit = |id: &str, number: usize| {
        let dir = scratch.dir(&format!("{id}-{number}"));
        let request = format!(
            r#"{{"id":"{number}","workDir":"{}","steps":["true"]}}"#,
            dir.display()
        );
        client.publish(&format!("{id}/pending"), request.as_bytes());
    };
    let mut queues = LENGTHS.map(|length| {
        let own = format!("queue-{length}");
        let mut pool = Fleet::new(broker, scratch, &format!("pool-queue-{length}"));
        open_session(broker, &own);
        for number in 0..length {
            submit(&own, number);
            pool.submit("true");
        }
        Queue {
            length,
            own,
            pool,
            cycles: Sample::default(),
            members: Sample::default(),
            turns: Sample::default(),
            hand_outs: Sample::default(),
        }
    });
    let (mut of_members, mut of_turns) = (Sample::default(), Sample::default());
    for round in 0..ROUNDS {
        for queue in &mut queues {
            let Queue { own, pool, .. } = queue;
            queue.hand_outs.push_time(broker.hand_out(own));
            queue
                .cycles
                .push_time(time(&mut command(program(), broker, own)));
            submit(own, queue.length + round); // as many as before
            queue.members.push_time(time(&mut pool.member(0).command()));
            pool.submit("true");
            queue.turns.push(turn(broker, pool));
            pool.submit("true");
        }
        let [shortest, .., longest] = &queues;
        of_members.push(longest.members.last() / shortest.members.last());
        of_turns.push(longest.turns.last() / shortest.turns.last());
    }
    let mut table = Table::new(&[
        "queued jobs",
        "whole cycle, ms",
        "the same, of a pool's member, ms",
        "of that, its turn as the head, ms",
        "connecting and getting the request, ms",
        "rounds",
    ]);
    for queue in &queues {
        table.row([
            queue.length.to_string(),
            queue.cycles.to_string(),
            queue.members.to_string(),
            queue.turns.to_string(),
            queue.hand_outs.to_string(),
            ROUNDS.to_string(),
        ]);
    }
    let figures = vec![
        Figure::at_most(
            "whole cycle of a pool's member with 10,000 queued jobs",
            1.2,
            "× that with 1",
            &of_members,
        ),
        Figure::told(
            "of that, its turn as the head, in which Mosquitto connects a client with 10,000 messages",
            "× that with 1",
            &of_turns,
        ),
    ];
    let each = |of: fn(&Queue<'_>) -> f64| queues.each_ref().map(of);
    let picture = pictures::queues(
        &LENGTHS.map(|length| length as f64),
        &each(|queue| queue.cycles.median()),
        &each(|queue| queue.members.median()),
        &each(|queue| queue.hand_outs.median()),
    );
    (figures, table, picture)
}

/// From the connection of the head to its DISCONNECT, in milliseconds.
fn turn(broker: &Broker, pool: &Fleet<'_>) -> f64 {
    let tap = Tap::before(broker.port);
    let url = format!("mqtt://127.0.0.1:{}", tap.port);
    time(pool.member(0).command().env("MQTT_URL", url));
    let visits = tap.visits(pool.name());
    let ended = visits[0].ended.expect("the head has left");
    (ended - visits[0].begun).as_secs_f64() * 1e3
}
