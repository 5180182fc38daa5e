%% For tests: a client's process with nothing but the standalone host in it.
-module(nats_gateway_host_mqtt_driver).

-export([
    all_events/1, await/2, await/4, await_any/1, barrier/1, barrier_call/1, call/2, client/1,
    client/3, deadline/0, delivered/1, deliveries/2, deliveries/4, driver/1, events/1,
    login_as/1, pub/2, pub/3, publish/2, publish/3, request/3, requests/0, socket/1, start/1,
    stop/1, subscribe/2, subscribe/3, subscribe_again/3, take/2, take/3, topic/1,
    unsubscribe_key/2, upstream/1
]).

-include("nats_gateway.hrl").
-include_lib("eunit/include/eunit.hrl").

-define(HOST, nats_gateway_host_mqtt).
-define(WAIT, 5000).

client(Port) -> client(Port, #{}, #{}).

upstream(Port) ->
    #{upstream := Upstream} = maps:get(config, client(Port)),
    Upstream.

client(Port, Config, Fields) ->
    Defaults = #{
        upstream => #{
            host => {127, 0, 0, 1},
            port => Port,
            tls => none,
            connect_timeout => 2000,
            keepalive => 60,
            max_topic_levels => 200,
            max_packet_size => default,
            probe => false
        },
        clientinfo_override => #{},
        mountpoint => <<>>,
        retained_on_subscribe => false,
        publish_properties => false,
        show_properties => false,
        max_payload_size => 1048576,
        max_control_line => 4096,
        secret => <<"of this gateway">>
    },
    #{
        connect => Fields,
        client_id => 1,
        transport => tcp,
        listener => <<"tcp:default">>,
        peername => {{127, 0, 0, 1}, 40000},
        sockname => {{127, 0, 0, 1}, 4222},
        config => maps:merge(Defaults, Config)
    }.

%% The outcome of a login that is over at once.
login_as(Client) ->
    {Pid, Outcome} = spawn_driver(Client),
    stop(Pid),
    Outcome.

start(Port) when is_integer(Port) ->
    start(client(Port));
start(Client) ->
    {Pid, {ok, _}} = spawn_driver(Client),
    Pid.

spawn_driver(Client) ->
    Pid = spawn_link(fun() -> driver(Client) end),
    {Pid, call(Pid, outcome)}.

driver(Client) ->
    case ?HOST:connect(Client) of
        {wait, Host} -> driver(Host, []);
        {error, Reason} -> not_started({error, Reason})
    end.

not_started(Outcome) ->
    receive
        {call, From, Ref, outcome} ->
            From ! {Ref, Outcome},
            not_started(Outcome);
        {call, From, Ref, stop} ->
            From ! {Ref, ok}
    end.

driver(Host, Events) ->
    receive
        {call, From, Ref, outcome} when Events =/= [] ->
            case lists:reverse(Events) of
                [{connected, Session} | Rest] ->
                    From ! {Ref, {ok, Session}},
                    driver(Host, lists:reverse(Rest));
                [{refused, Reason}] ->
                    From ! {Ref, {refused, Reason}},
                    driver(Host, [])
            end;
        {call, From, Ref, events} ->
            From ! {Ref, lists:reverse(Events)},
            driver(Host, []);
        {call, From, Ref, {take, Is}} ->
            case lists:splitwith(fun(Event) -> not Is(Event) end, lists:reverse(Events)) of
                {_, []} ->
                    From ! {Ref, none},
                    driver(Host, Events);
                {Before, [Event | After]} ->
                    From ! {Ref, {ok, Event}},
                    driver(Host, lists:reverse(Before ++ After))
            end;
        {call, From, Ref, stop} ->
            From ! {Ref, ?HOST:disconnect(test, Host)};
        {call, From, Ref, Fun} when is_function(Fun) ->
            {Reply, NHost} = Fun(Host),
            From ! {Ref, Reply},
            driver(NHost, Events);
        Message when element(1, Message) =/= call ->
            case ?HOST:handle_info(Message, Host) of
                ignore -> driver(Host, Events);
                {New, NHost} -> driver(NHost, lists:reverse(New, Events))
            end
    end.

call(Pid, Request) ->
    Ref = make_ref(),
    Pid ! {call, self(), Ref, Request},
    receive
        {Ref, Reply} -> Reply
    after ?WAIT -> error({no_answer, Request, erlang:process_info(Pid, current_stacktrace)})
    end.

stop(Pid) -> call(Pid, stop).

%% Deliveries without what this host never says. That a shared subscription has begun is left out.
events(Pid) -> [without_id(Event) || Event <- all_events(Pid), not is_joined(Event)].

is_joined({joined, _}) -> true;
is_joined(_) -> false.

all_events(Pid) -> call(Pid, events).

without_id({deliver, Deliveries}) ->
    {deliver, [
        {Key, Topic, Reply, Headers, Payload}
     || #delivery{
            key = Key, topic = Topic, reply = Reply, headers = Headers, payload = Payload, id = undefined
        } <- Deliveries
    ]};
without_id(Event) ->
    Event.

%% All events up to one of that kind.
await(Pid, Wanted) ->
    await(Pid, fun(Event) -> Event =:= Wanted end, [], deadline()).

await(Pid, Is, Acc, Deadline) ->
    NAcc = Acc ++ events(Pid),
    case lists:any(Is, NAcc) of
        true ->
            NAcc;
        false ->
            erlang:monotonic_time(millisecond) < Deadline orelse error({missing, NAcc}),
            timer:sleep(1),
            await(Pid, Is, NAcc, Deadline)
    end.

await_any(Pid) ->
    case events(Pid) of
        [] ->
            timer:sleep(1),
            await_any(Pid);
        Events ->
            Events
    end.

deadline() -> erlang:monotonic_time(millisecond) + ?WAIT.

%% So many deliveries, and no other event.
deliveries(Count, Pid) -> deliveries(Count, Pid, [], deadline()).

deliveries(Count, Pid, Acc, Deadline) ->
    Events = events(Pid),
    NAcc = Acc ++ delivered(Events),
    ?assertEqual([], [Event || Event <- Events, element(1, Event) =/= deliver]),
    if
        length(NAcc) >= Count ->
            ?assertEqual(Count, length(NAcc)),
            NAcc;
        true ->
            ?assert(erlang:monotonic_time(millisecond) < Deadline),
            timer:sleep(1),
            deliveries(Count, Pid, NAcc, Deadline)
    end.

delivered(Events) -> lists:append([Deliveries || {deliver, Deliveries} <- Events]).

%% A completion; what was delivered before it stays to be asked for.
take(Pid, Is) -> take(Pid, Is, deadline()).

take(Pid, Is, Deadline) ->
    case call(Pid, {take, Is}) of
        {ok, Event} ->
            Event;
        none ->
            erlang:monotonic_time(millisecond) < Deadline orelse error({missing, events(Pid)}),
            timer:sleep(1),
            take(Pid, Is, Deadline)
    end.

publish(Pid, Pubs) -> publish(Pid, Pubs, #{confirm => false, no_responders => false}).

publish(Pid, Pubs, Options) ->
    Outcome = call(Pid, fun(Host) ->
        case ?HOST:publish(Pubs, Options, Host) of
            {ok, [], NHost} -> {ok, NHost};
            {ok, Rejections, NHost} -> {{rejected, Rejections}, NHost};
            {wait, NHost} -> {wait, NHost};
            {stop, Reason, NHost} -> {{stop, Reason}, NHost}
        end
    end),
    case Outcome of
        wait -> take(Pid, fun(Event) -> element(1, Event) =:= published end);
        _ -> Outcome
    end.

requests() -> #{confirm => false, no_responders => true}.

subscribe(Pid, Key) -> subscribe(Pid, Key, #{confirm => false, no_local => false}).

subscribe_again(Pid, Keys, Options) ->
    Outcome = call(Pid, fun(Host) ->
        case ?HOST:subscribe_again(Keys, Options, Host) of
            {ok, [], NHost} -> {now, NHost};
            {wait, NHost} -> {wait, NHost}
        end
    end),
    case Outcome of
        wait -> take(Pid, fun(Event) -> element(1, Event) =:= subscribed_again end);
        _ -> Outcome
    end.

subscribe(Pid, Key, Options) ->
    Outcome = call(Pid, fun(Host) ->
        case ?HOST:subscribe(Key, Options, Host) of
            {stop, Reason, NHost} -> {{stop, Reason}, NHost};
            {Answer, NHost} -> {Answer, NHost}
        end
    end),
    case Outcome of
        wait -> take(Pid, fun(Event) -> element(1, Event) =:= subscribed end);
        _ -> Outcome
    end.

unsubscribe_key(Pid, Key) ->
    call(Pid, fun(Host) -> {ok, ?HOST:unsubscribe(Key, Host)} end).

barrier_call(Host) ->
    case ?HOST:barrier(own, Host) of
        {ok, NHost} -> {now, NHost};
        {wait, NHost} -> {wait, NHost}
    end.

barrier(Pid) ->
    case call(Pid, fun barrier_call/1) of
        now -> ok;
        wait -> barrier = take(Pid, fun(Event) -> Event =:= barrier end), ok
    end.

pub(Subject, Payload) -> pub(Subject, Payload, undefined).

pub(Subject, Payload, Block) ->
    #pub{subject = Subject, topic = topic(Subject), headers = Block, payload = Payload}.

request(Subject, ReplyTo, Payload) ->
    #pub{
        subject = Subject,
        topic = topic(Subject),
        reply_to = ReplyTo,
        reply_topic = topic(ReplyTo),
        payload = Payload
    }.

topic(Subject) -> nats_gateway_nif:topic(Subject, <<>>).

%% Of the host's client, under its transport.
socket(Host) ->
    {tcp, Socket} = element(2, element(2, Host)),
    Socket.
