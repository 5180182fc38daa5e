%% One watcher of a bucket: a push consumer, in JetStream's words.
%%
%% It subscribes first and then looks at all keys, so that it misses nothing. `nats_gateway_kv_queue'
%% drops what it sees twice. Values go to the client's own subscription in batches. There is never
%% more than one batch on its way to the client's process, which says for each whether somebody has
%% subscribed to the subject. Clients may subscribe before they create the consumer, or after it.
%%
%% Where the client asks for flow control, it says from time to time how far it has read, and no more
%% than a window of bytes is unread.
%%
%% If its client loses the connection, the process waits for it (`nats_gateway_kv_kept'). What changes
%% meanwhile is kept as for a client that is slow. Otherwise the process ends with its session.
-module(nats_gateway_kv_consumer).

-behaviour(gen_server).

-export([start_link/1]).
-export([start_delivery/1]).
-export([facts/1]).
-export([taken/2]).
-export([stop/1]).
-export([wait_for_client/2]).
-export([ask_for_filters/1]).
-export([claim/2]).
-export([adopt/3]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).
-export([terminate/2, format_status/1]).

-export_type([options/0]).

-type options() :: #{
    client := pid(),
    identity := nats_gateway_kv_kept:identity(),
    store := nats_gateway_kv_store:store(),
    bucket := nats_gateway_kv_bucket:bucket(),
    consumer := nats_gateway_kv_request:consumer(),
    name := binary()
}.

-define(FIRST_BATCH, 16).
-define(MAX_BATCH, 256).
-define(BATCH_BYTES, 262144).
%% Changes that wait with their values.
-define(MAX_LIVE, 256).

-record(state, {
    %% whom it serves, or that it waits for its client, and until when
    client :: pid() | {kept, Until :: reference()},
    kept :: nats_gateway_kv_kept:kept(),
    %% the session of another connection of the client, which has subscribed to the same subject
    heir = none :: none | pid(),
    store :: nats_gateway_kv_store:store(),
    bucket :: nats_gateway_kv_bucket:bucket(),
    consumer :: nats_gateway_kv_request:consumer(),
    name :: binary(),
    created :: integer(),
    queue :: nats_gateway_kv_queue:queue(),
    %% numbers of the last message that was made
    sequence = 0 :: non_neg_integer(),
    revision = 0 :: non_neg_integer(),
    %% changes with their values, latest first, and their bytes. They go before what is in the queue.
    live = [] :: [nats_gateway_kv_store:change()],
    live_bytes = 0 :: non_neg_integer(),
    %% `idle', or what is on its way to the client
    feeding = idle :: idle | [nats_gateway_requests:feed()],
    %% frames that nobody had subscribed to
    unsent = [] :: [nats_gateway_requests:feed()],
    %% whether somebody has subscribed, or the time until which this is waited for
    interest = {none, 0} :: yes | {none, UntilMs :: integer()},
    retry = 0 :: non_neg_integer(),
    %% how many keys are read at once
    batch = ?FIRST_BATCH :: pos_integer(),
    %% flow control: bytes that the client has not said to have read, how many there may be, and the
    %% question that it has not answered
    unread = 0 :: non_neg_integer(),
    window = 0 :: infinity | non_neg_integer(),
    asked = none :: none | {Token :: binary(), Bytes :: non_neg_integer()},
    %% when the last frame went to the client
    last = 0 :: integer(),
    ticking = none :: none | reference()
}).

%% As in a nats-server, the window grows with each answer of the client.
-define(MIN_WINDOW, 65536).
-define(MAX_WINDOW, 2097152).

%% How often it is looked at whether the client has subscribed: soon, and then less often.
-define(FIRST_LOOK_MS, 5).
-define(LOOK_MS, 250).
-define(IDLE_MS, 1000).
%% Some clients ask for a watcher that waits for minutes, end their subscription when they have read
%% enough, and do not delete it. Nobody subscribes to the same subject again.
-define(LEFT_MS, 2000).
%% How often it is looked at whether a slow client has read what it was sent.
-define(BEHIND_MS, 50).

%% How long a watcher waits for a client that has lost its connection.
-define(MAX_KEPT_MS, 30000).
%% A connection that has ended does not take what is on its way to it.
-define(UNTAKEN_MS, 50).

%% A message takes less to arrive after its value was retained.
-define(SETTLED_MS, 60000).

%% -------------------------------------------------------------------------------------------

-spec start_link(options()) -> {ok, pid()} | {error, term()}.
start_link(Options) -> nats_gateway_guard:start_link(?MODULE, Options).

%% The client has been told that the consumer is there.
-spec start_delivery(pid()) -> ok.
start_delivery(Pid) -> gen_server:cast(Pid, start_delivery).

%% For an answer, without the name of the leader.
-spec facts(pid()) -> {ok, map()} | gone.
facts(Pid) ->
    try
        {ok, gen_server:call(Pid, facts)}
    catch
        exit:_ -> gone
    end.

%% The client has read everything up to the question with this token.
-spec taken(pid(), Token :: binary()) -> ok.
taken(Pid, Token) -> gen_server:cast(Pid, {taken, Token}).

-spec stop(pid()) -> ok.
stop(Pid) ->
    true = unlink(Pid),
    gen_server:cast(Pid, stop).

%% The client has lost its connection. `no': the watcher ends.
-spec wait_for_client(pid(), Most :: non_neg_integer()) -> yes | no.
wait_for_client(Pid, Most) -> call(Pid, {wait_for_client, Most}, no).

%% What a client must have the right to subscribe to, to take over this watcher. The caller gets a
%% message `{nats_gateway_kv_consumer, filters, Pid, DeliverTopic, [Filter]}' when the watcher has time.
-spec ask_for_filters(pid()) -> ok.
ask_for_filters(Pid) -> gen_server:cast(Pid, {ask_for_filters, self()}).

%% The client is there again, with another process and the calling session. The watcher is offered to
%% the session as soon as it waits: the end of the earlier connection may not have been seen yet.
-spec claim(pid(), Client :: pid()) -> ok.
claim(Pid, Client) -> gen_server:cast(Pid, {claim, self(), Client}).

%% The calling session takes the watcher that was offered to it. `later': another one was faster.
-spec adopt(pid(), Client :: pid(), nats_gateway_kv_store:store()) ->
    {ok, nats_gateway_kv_bucket:bucket(), Name :: binary()} | later | gone.
adopt(Pid, Client, Store) -> call(Pid, {adopt, Client, Store}, gone).

call(Pid, Request, IfGone) ->
    try
        gen_server:call(Pid, Request)
    catch
        exit:_ -> IfGone
    end.

%% -------------------------------------------------------------------------------------------

init(Options = #{client := Client, store := Store, bucket := Bucket, consumer := Consumer, name := Name}) ->
    #{filters := Filters, start := Start, flow_control := FlowControl, inactive := Inactive} = Consumer,
    #{deliver_topic := DeliverTopic} = Consumer,
    Queue = nats_gateway_kv_queue:new(),
    State = #state{
        client = Client,
        kept = nats_gateway_kv_kept:enter(maps:get(identity, Options), DeliverTopic),
        store = Store,
        bucket = Bucket,
        consumer = Consumer,
        name = Name,
        created = erlang:system_time(millisecond),
        queue = Queue,
        interest = {none, now_ms() + Inactive},
        last = now_ms(),
        window =
            case FlowControl of
                true -> ?MIN_WINDOW;
                false -> infinity
            end
    },
    try
        {Module, Context} = Store,
        {Opened, _} = Module:open(consumer, Context),
        NState = State#state{store = {Module, Opened}},
        lists:foreach(fun({_, Filter}) -> ok = Module:subscribe(Filter, Opened) end, Filters),
        _ = Start =/= new andalso lists:foreach(fun(Filter) -> look(Filter, Start, NState) end, Filters),
        _ = erlang:send_after(?SETTLED_MS, self(), settled),
        {ok, NState}
    catch
        throw:{store, Failure} -> {stop, {shutdown, {store, Failure}}}
    end.

look({_, Filter}, Start, State = #state{store = {Module, Context}, queue = Queue}) ->
    Module:fold(
        Filter,
        fun(Topic, #{revision := Revision}, Acc) ->
            _ =
                Revision >= Start andalso is_watched(Topic, State) andalso
                    nats_gateway_kv_queue:add(Revision, Topic, put, Queue),
            Acc
        end,
        ok,
        Context
    ).

%% MQTT's filters match more than those of NATS.
is_watched(Topic, #state{bucket = Bucket, consumer = #{filters := Filters}}) ->
    case nats_gateway_kv_bucket:key_of_topic(Topic, Bucket) of
        {ok, Key} ->
            lists:any(fun({KeyFilter, _}) -> nats_gateway_nif:subject_matches(KeyFilter, Key) end, Filters);
        error ->
            false
    end.

handle_call(facts, _, State) ->
    #state{sequence = Sequence, revision = Revision, queue = Queue, consumer = #{config := Config}} =
        State,
    OnTheWay = length(on_its_way(State)),
    {reply,
        #{
            bucket => State#state.bucket,
            name => State#state.name,
            created => State#state.created,
            config => Config,
            delivered => {Sequence - OnTheWay, Revision},
            pending => nats_gateway_kv_queue:size(Queue) + length(State#state.live) + OnTheWay,
            bound => State#state.interest =:= yes
        },
        State};
handle_call({wait_for_client, Most}, {Session, _}, State) ->
    #state{consumer = #{inactive := Inactive}, kept = Kept, heir = Heir} = State,
    case nats_gateway_kv_kept:keep(Kept, Most) of
        ok ->
            true = unlink(Session),
            Until = erlang:start_timer(min(Inactive, ?MAX_KEPT_MS), self(), kept),
            _ = is_pid(Heir) andalso offer(Heir, State),
            {reply, yes, without_client({kept, Until}, State)};
        full ->
            {stop, normal, no, State}
    end;
handle_call({adopt, Client, Store}, {Session, _}, State = #state{client = {kept, Until}}) ->
    true = link(Session),
    ok = nats_gateway_kv_kept:release(State#state.kept),
    _ = erlang:cancel_timer(Until),
    {reply, {ok, State#state.bucket, State#state.name}, with_client(Client, Store, State)};
handle_call({adopt, Client, _}, {Session, _}, State = #state{client = Other}) when Client =/= Other ->
    {reply, later, State#state{heir = Session}};
handle_call(_, _, State) ->
    {reply, gone, State}.

handle_cast(start_delivery, State) ->
    %% If there is nothing to send, the client is asked all the same whether it has subscribed.
    case pump(State) of
        Idle = #state{feeding = idle} -> {noreply, tick(knock(Idle))};
        Feeding -> {noreply, tick(Feeding)}
    end;
handle_cast({taken, Token}, State = #state{asked = {Token, Bytes}, window = Window}) ->
    {noreply,
        pump(State#state{
            asked = none,
            unread = State#state.unread - Bytes,
            window = min(?MAX_WINDOW, 2 * Window)
        })};
handle_cast({taken, _}, State) ->
    {noreply, State};
handle_cast({ask_for_filters, Pid}, State = #state{consumer = Consumer}) ->
    #{filters := Filters, deliver_topic := Topic} = Consumer,
    Pid ! {?MODULE, filters, self(), Topic, [Filter || {_, Filter} <- Filters]},
    {noreply, State};
handle_cast({claim, Session, _}, State = #state{client = {kept, _}}) ->
    ok = offer(Session, State),
    {noreply, State};
handle_cast({claim, _, Client}, State = #state{client = Client}) ->
    {noreply, State};
handle_cast({claim, Session, _}, State) ->
    {noreply, State#state{heir = Session}};
handle_cast(stop, State) ->
    {stop, normal, State}.

offer(Session, #state{consumer = #{deliver_topic := Topic}}) ->
    gen_server:cast(Session, {offer, self(), Topic}).

handle_info({timeout, Until, kept}, State = #state{client = {kept, Until}}) ->
    {stop, normal, State};
%% from a connection that is gone
handle_info({fed, _}, State = #state{feeding = idle}) ->
    {noreply, State};
handle_info(Own, State = #state{client = {kept, _}}) when Own =:= again; Own =:= tick ->
    {noreply, State};
handle_info({fed, yes}, State) ->
    {noreply, pump(State#state{feeding = idle, interest = yes, retry = 0})};
handle_info({fed, no}, State = #state{feeding = Frames, unsent = Unsent, interest = Interest}) ->
    Until =
        case Interest of
            yes -> now_ms() + ?LEFT_MS;
            {none, At} -> At
        end,
    Kept = [Frame || Frame <- Frames, not is_heartbeat(Frame)],
    {noreply, State#state{feeding = idle, unsent = Kept ++ Unsent, interest = {none, Until}}};
%% The client has the frames, but it is slow.
handle_info({fed, behind}, State) ->
    _ = erlang:send_after(?BEHIND_MS, self(), again),
    {noreply, State#state{feeding = [], interest = yes, retry = 0}};
handle_info(again, State) ->
    {noreply, send([], State)};
handle_info(tick, State = #state{interest = {none, Until}}) ->
    case now_ms() >= Until of
        true -> {stop, normal, State};
        false -> {noreply, tick(knock(State))}
    end;
handle_info(tick, State) ->
    {noreply, tick(beat(State))};
handle_info(settled, State = #state{queue = Queue}) ->
    {noreply, State#state{queue = nats_gateway_kv_queue:settle(Queue)}};
handle_info(Message = {'DOWN', _, _, _, _}, State = #state{kept = Kept}) ->
    case nats_gateway_kv_kept:is_over(Message, Kept) of
        true -> {stop, normal, State};
        false -> {noreply, State}
    end;
handle_info(Message, State = #state{store = {Module, Context}}) ->
    case Module:change(Message, Context) of
        {Kind, Topic, Value} ->
            case is_watched(Topic, State) of
                true -> {noreply, changed(Kind, Topic, Value, State)};
                false -> {noreply, State}
            end;
        ignore ->
            {noreply, State}
    end.

terminate(_, _) -> ok.

format_status(Status = #{state := State}) ->
    #state{name = Name, sequence = Sequence, unread = Unread, window = Window} = State,
    Shown = #{name => Name, sequence => Sequence, unread => Unread, window => Window},
    Status#{state := Shown#{interest => State#state.interest, unsent => length(State#state.unsent)}}.

%% Clients that subscribe late expect these to come. jnats takes what is pending and what is delivered
%% together for the number of values, so each counts only once.
on_its_way(#state{feeding = idle, unsent = Unsent}) -> values(Unsent);
on_its_way(#state{feeding = Feeding, unsent = Unsent}) -> values(Feeding ++ Unsent).

values(Frames) -> [Frame || Frame = {Subject, _, _, _} <- Frames, Subject =/= inbox].

%% -------------------------------------------------------------------------------------------

%% Frames that the connection has not taken are for the next one. Others may be lost on their way: the
%% numbers in what follows tell the client, as with a nats-server.
without_client(Kept, State = #state{feeding = Feeding, unsent = Unsent}) ->
    Untaken =
        case Feeding of
            idle -> [];
            [] -> [];
            _ ->
                receive
                    {fed, Taken} when Taken =/= no -> []
                after ?UNTAKEN_MS -> Feeding
                end
        end,
    _ = State#state.ticking =/= none andalso erlang:cancel_timer(State#state.ticking),
    State#state{client = Kept, heir = none, feeding = idle, unsent = values(Untaken) ++ Unsent, ticking = none}.

%% What the client has not said to have read is lost, or read: it does not matter any more.
%% A heartbeat is due.
with_client(Client, {Module, Context}, State = #state{store = {Module, Own}, window = Window}) ->
    #state{consumer = #{heartbeat := Heartbeat}} = State,
    State#state{
        client = Client,
        store = {Module, Module:hand_over(Context, Own)},
        interest = {none, now_ms() + ?LEFT_MS},
        retry = 0,
        unread = 0,
        asked = none,
        window =
            case Window of
                infinity -> infinity;
                _ -> ?MIN_WINDOW
            end,
        last =
            case Heartbeat of
                infinity -> now_ms();
                _ -> now_ms() - Heartbeat
            end
    }.

%% A watcher that keeps up is told of each change. For one that does not, the queue keeps only the last
%% one of each key.
changed(Kind, Topic, Value = #{revision := Revision}, State = #state{queue = Queue}) ->
    case has_room(State) of
        true ->
            case nats_gateway_kv_queue:pass(Revision, Topic, Queue) of
                new -> pump(live({Kind, Topic, Value}, State));
                known -> State
            end;
        false ->
            What =
                case Kind of
                    put -> put;
                    delete -> {delete, Value}
                end,
            _ = nats_gateway_kv_queue:add(Revision, Topic, What, Queue),
            State
    end.

has_room(#state{queue = Queue, live = Live, live_bytes = Bytes}) ->
    nats_gateway_kv_queue:size(Queue) =:= 0 andalso length(Live) < ?MAX_LIVE andalso Bytes < ?BATCH_BYTES.

live(Change = {_, Topic, #{payload := Payload}}, State = #state{live = Live, live_bytes = Bytes}) ->
    State#state{live = [Change | Live], live_bytes = Bytes + byte_size(Topic) + byte_size(Payload)}.

%% Sends what waits, as much as may be on its way.
pump(State = #state{client = {kept, _}}) ->
    State;
pump(State = #state{interest = {none, _}, unsent = [_ | _]}) ->
    State;
pump(State = #state{feeding = idle, unsent = Unsent = [_ | _]}) ->
    send(Unsent, State#state{unsent = []});
pump(State = #state{feeding = idle, live = Live = [_ | _], unread = Unread, window = Window}) when
    Unread < Window
->
    {Frames, NState} = live_frames(lists:reverse(Live), [], State#state{live = [], live_bytes = 0}),
    feed(Frames, NState);
pump(State = #state{feeding = idle, unread = Unread, window = Window}) when Unread < Window ->
    try batch(State) of
        {[], NState} -> NState;
        {Frames, NState} -> feed(Frames, NState)
    catch
        %% The client makes its consumer again when it hears nothing.
        throw:{store, _} -> exit({shutdown, store_gone})
    end;
pump(State) ->
    State.

live_frames([], Frames, State) ->
    {lists:reverse(Frames), State};
live_frames([{Kind, Topic, Value} | Live], Frames, State = #state{queue = Queue}) ->
    Pending = length(Live) + nats_gateway_kv_queue:size(Queue),
    {Frame, NState} = frame(Kind, Topic, Value, Pending, State),
    live_frames(Live, [Frame | Frames], NState).

%% The values of the keys whose turn it is are read together. How many are read depends on how large
%% the values before them were, also where the client wants no payloads.
batch(State = #state{queue = Queue, batch = N, store = {Module, Context}}) ->
    Entries = nats_gateway_kv_queue:take(N, Queue),
    Topics = [Topic || {_, Topic, put} <- Entries],
    Read = Module:read(Topics, Context),
    Values = maps:from_list(lists:zip(Topics, Read)),
    {Frames, NState} = frames(Entries, Values, [], State),
    Bytes = max(
        lists:sum([size_of(Frame) || Frame <- Frames]),
        lists:sum([byte_size(Payload) || {ok, #{payload := Payload}} <- Read])
    ),
    {Frames, NState#state{
        batch = max(1, min(?MAX_BATCH, ?BATCH_BYTES * max(1, length(Frames)) div max(1, Bytes)))
    }}.

frames([], _, Frames, State) ->
    {lists:reverse(Frames), State};
frames([Entry | Entries], Values, Frames, State = #state{queue = Queue}) ->
    Pending = nats_gateway_kv_queue:size(Queue) + length(Entries),
    case frame_of(Entry, Values, Pending, State) of
        {Frame, NState} -> frames(Entries, Values, [Frame | Frames], NState);
        none -> frames(Entries, Values, Frames, State)
    end.

%% If the key has a later value, the message about that is on its way. If it has none, it has
%% expired, or the message that deletes it is on its way: the client is told either way, because it
%% counts what it gets.
frame_of({Revision, Topic, put}, Values, Pending, State) ->
    case Values of
        #{Topic := {ok, Value = #{revision := Revision}}} -> frame(put, Topic, Value, Pending, State);
        #{Topic := {ok, _}} -> none;
        #{Topic := none} -> frame(delete, Topic, gone(Revision), Pending, State)
    end;
frame_of({_, Topic, {delete, Value}}, _, Pending, State) ->
    frame(delete, Topic, Value, Pending, State).

gone(Revision) ->
    #{
        revision => Revision,
        at => erlang:system_time(millisecond),
        headers => nats_gateway_kv_answer:deleted(<<"DEL">>),
        payload => <<>>
    }.

frame(Kind, Topic, Value, Pending, State) ->
    #{revision := Revision, at := At, headers := Headers, payload := Payload} = Value,
    #state{sequence = Last, bucket = Bucket, name = Name, consumer = Consumer} = State,
    Sequence = Last + 1,
    Reply = iolist_to_binary([
        <<"$JS.ACK.">>,
        lists:join($., [
            nats_gateway_kv_bucket:stream(Bucket),
            Name,
            <<"1">>,
            integer_to_binary(Revision),
            integer_to_binary(Sequence),
            integer_to_binary(At * 1000000),
            integer_to_binary(Pending)
        ])
    ]),
    Subject = nats_gateway_kv_bucket:subject_topic(Topic, Bucket),
    {NHeaders, NPayload} = content(Kind, Headers, Payload, Consumer),
    NState = State#state{sequence = Sequence, revision = max(Revision, State#state.revision)},
    {{Subject, {subject, Reply}, NHeaders, NPayload}, NState}.

content(put, Headers, Payload, #{headers_only := true}) ->
    Size = integer_to_binary(byte_size(Payload)),
    {nats_gateway_kv_answer:frame_headers(Headers, [{<<"Nats-Msg-Size">>, Size}]), <<>>};
content(_, Headers, Payload, _) ->
    {Headers, Payload}.

size_of({Subject, {subject, Reply}, Headers, Payload}) ->
    Block =
        case Headers of
            undefined -> 0;
            _ when is_binary(Headers) -> byte_size(Headers);
            {properties, Pairs, _} -> lists:sum([byte_size(N) + byte_size(V) + 4 || {N, V} <- Pairs])
        end,
    byte_size(Subject) + byte_size(Reply) + Block + byte_size(Payload).

%% -------------------------------------------------------------------------------------------
%% To the client

feed(Frames, State = #state{unread = Unread}) ->
    Bytes = lists:sum([size_of(Frame) || Frame <- Frames]),
    {Asking, NState} = ask(State#state{unread = Unread + Bytes}),
    send(Frames ++ Asking, NState).

is_heartbeat({inbox, undefined, _, _}) -> true;
is_heartbeat(_) -> false.

%% Asks the client to say when it has read everything up to here.
ask(State = #state{asked = none, unread = Unread, window = Window}) when
    is_integer(Window), 2 * Unread >= Window
->
    Token = binary:encode_hex(crypto:strong_rand_bytes(4)),
    {
        [{inbox, {subject, question(Token, State)}, nats_gateway_kv_answer:control(flow_control, []), <<>>}],
        State#state{asked = {Token, Unread}}
    };
ask(State) ->
    {[], State}.

question(Token, #state{bucket = Bucket, name = Name}) ->
    Stream = nats_gateway_kv_bucket:stream(Bucket),
    <<"$JS.FC.", Stream/binary, $., Name/binary, $., Token/binary>>.

send(Frames, State = #state{client = Client, consumer = #{deliver_topic := DeliverTopic}}) ->
    ok = nats_gateway_connection:feed(Client, DeliverTopic, Frames),
    Last =
        case Frames of
            [] -> State#state.last;
            _ -> now_ms()
        end,
    State#state{feeding = Frames, last = Last}.

%% Looks whether somebody has subscribed by now.
knock(State = #state{feeding = idle, unsent = Unsent}) -> send(Unsent, State#state{unsent = []});
knock(State) -> State.

beat(State = #state{feeding = idle, last = Last, consumer = #{heartbeat := Heartbeat}}) ->
    case now_ms() - Last >= Heartbeat of
        true -> send([heartbeat(State)], State);
        false -> send([], State)
    end;
beat(State) ->
    State.

heartbeat(State = #state{sequence = Sequence, revision = Revision, asked = Asked}) ->
    Stalled =
        case Asked of
            {Token, _} -> [{<<"Nats-Consumer-Stalled">>, question(Token, State)}];
            none -> []
        end,
    Pairs = [
        {<<"Nats-Last-Consumer">>, integer_to_binary(Sequence)},
        {<<"Nats-Last-Stream">>, integer_to_binary(Revision)}
        | Stalled
    ],
    {inbox, undefined, nats_gateway_kv_answer:control(heartbeat, Pairs), <<>>}.

tick(State = #state{interest = {none, _}, retry = Retry}) ->
    Ms = min(?LOOK_MS, ?FIRST_LOOK_MS bsl min(Retry, 8)),
    State#state{retry = Retry + 1, ticking = erlang:send_after(Ms, self(), tick)};
tick(State = #state{consumer = #{heartbeat := Heartbeat}}) ->
    State#state{ticking = erlang:send_after(min(?IDLE_MS, Heartbeat), self(), tick)}.

now_ms() -> erlang:monotonic_time(millisecond).
