%% What one client does with the key/value store. It handles the requests of its client in their
%% order, so that a client reads what it has written, and starts its watchers. It ends with its
%% client.
-module(nats_gateway_kv_session).

-behaviour(gen_server).

-export([new/1]).
-export([submit/3]).
-export([leave/2]).
-export([stop/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).
-export([terminate/2, format_status/1]).

-export_type([session/0, options/0]).

%% The client's own process starts the session, and counts what it has not done yet.
-opaque session() :: {pid(), counters:counters_ref()}.

%% The client has subscribed to the topic of this watcher, which may be that of an earlier connection.
-type claim() :: {claim, Watcher :: pid()}.

-type options() :: #{
    client := pid(),
    identity := nats_gateway_kv_kept:identity(),
    store := nats_gateway_kv_store:store(),
    %% the id of this server
    leader := binary(),
    max_consumers := pos_integer()
}.

-record(state, {
    client :: pid(),
    identity :: nats_gateway_kv_kept:identity(),
    store :: nats_gateway_kv_store:store(),
    leader :: binary(),
    max_consumers :: pos_integer(),
    waiting :: counters:counters_ref(),
    %% the store is opened when it is needed, and ends with this process
    opened = false :: boolean(),
    link = none :: none | pid(),
    consumers = #{} :: #{{Stream :: binary(), Name :: binary()} => {pid(), DeliverTopic :: binary()}}
}).

%% Requests and bytes of one client that may wait. Clients wait for an answer before they ask again,
%% except where they publish many values at once.
-define(MAX_WAITING, 4096).
-define(MAX_BYTES, 16777216).

-spec new(options()) -> session().
new(Options) ->
    Waiting = counters:new(2, [atomics]),
    {ok, Pid} = nats_gateway_guard:start_link(?MODULE, Options#{waiting => Waiting}),
    %% It ends with the client because it monitors it. Its own end is no reason for that of the client.
    true = unlink(Pid),
    {Pid, Waiting}.

%% The answer goes to the client, unless it has no use for one.
-spec submit(nats_gateway_kv_request:action() | claim(), ReplyTopic :: undefined | binary(), session()) ->
    ok | gone.
submit(Action, ReplyTopic, {Pid, Waiting}) ->
    IsAlive = is_process_alive(Pid),
    Size = size_of(Action),
    HasRoom = counters:get(Waiting, 1) < ?MAX_WAITING andalso counters:get(Waiting, 2) < ?MAX_BYTES,
    case HasRoom of
        _ when not IsAlive ->
            gone;
        true ->
            ok = counters:add(Waiting, 1, 1),
            ok = counters:add(Waiting, 2, Size),
            gen_server:cast(Pid, {request, Action, ReplyTopic, Size});
        false ->
            Failed = {error, nats_gateway_kv_request:type_of(Action), too_many_requests},
            answer(self(), ReplyTopic, Failed)
    end.

%% The connection ends, and these topics are subscribed to. The client may come back for the watchers
%% that deliver to them.
-spec leave([Topic :: binary()], session()) -> ok.
leave(Topics, {Pid, _}) -> gen_server:cast(Pid, {leave, Topics}).

%% The client has another login, or none. Its watchers end, too.
-spec stop(session()) -> ok.
stop({Pid, _}) -> gen_server:cast(Pid, stop).

size_of({write, _, _, _, {put, _, Payload, _}}) -> byte_size(Payload);
size_of(_) -> 0.

%% -------------------------------------------------------------------------------------------

init(Options = #{client := Client, store := Store, leader := Leader, waiting := Waiting}) ->
    _ = process_flag(trap_exit, true),
    _ = monitor(process, Client),
    {ok, #state{
        client = Client,
        identity = maps:get(identity, Options),
        store = Store,
        leader = Leader,
        max_consumers = maps:get(max_consumers, Options),
        waiting = Waiting
    }}.

handle_call(_, _, State) -> {reply, ignored, State}.

handle_cast(stop, State) ->
    {stop, {shutdown, stopped}, State};
%% This watcher waits now. The client has subscribed to its topic already.
handle_cast({offer, Watcher, Topic}, State) ->
    {Answer, NState} = try_to_do({adopt, Watcher, Topic}, State),
    _ =
        case Answer of
            {adopted, Pid} -> nats_gateway_kv_consumer:start_delivery(Pid);
            _ -> ok
        end,
    {noreply, NState};
handle_cast({leave, Topics}, State = #state{consumers = Consumers}) ->
    #state{max_consumers = Most} = State,
    Wanted = maps:from_keys(Topics, true),
    lists:foreach(
        fun({Pid, Topic}) ->
            is_map_key(Topic, Wanted) andalso nats_gateway_kv_consumer:wait_for_client(Pid, Most)
        end,
        maps:values(Consumers)
    ),
    {stop, {shutdown, client_gone}, State};
handle_cast({request, Action, ReplyTopic, Size}, State = #state{client = Client, waiting = Waiting}) ->
    {Answer, NState} = try_to_do(Action, State),
    ok = counters:sub(Waiting, 1, 1),
    ok = counters:sub(Waiting, 2, Size),
    _ =
        case Answer of
            none -> ok;
            {started, Pid, Created} ->
                ok = answer(Client, ReplyTopic, Created),
                nats_gateway_kv_consumer:start_delivery(Pid);
            _ ->
                answer(Client, ReplyTopic, Answer)
        end,
    {noreply, NState}.

handle_info({'DOWN', _, process, Client, _}, State = #state{client = Client}) ->
    %% ends the watchers as well
    {stop, {shutdown, client_gone}, State};
handle_info({'EXIT', Link, _}, State = #state{link = Link}) ->
    {stop, {shutdown, store_gone}, State};
handle_info({'EXIT', Pid, _}, State = #state{consumers = Consumers}) ->
    {noreply, State#state{consumers = maps:filter(fun(_, {Other, _}) -> Other =/= Pid end, Consumers)}};
handle_info(_, State) ->
    {noreply, State}.

terminate(_, _) -> ok.

format_status(Status = #{state := #state{consumers = Consumers, opened = Opened}}) ->
    Status#{state := #{consumers => maps:keys(Consumers), opened => Opened}}.

answer(_, undefined, _) ->
    ok;
answer(Client, ReplyTopic, Answer) ->
    {Headers, Payload} = nats_gateway_kv_answer:encode(Answer),
    nats_gateway_connection:answer(Client, ReplyTopic, Headers, Payload).

%% -------------------------------------------------------------------------------------------

try_to_do(Action, State = #state{opened = Opened, store = {Module, Context}}) ->
    try
        case Opened orelse not needs_store(Action) of
            true ->
                do(Action, State);
            false ->
                {NContext, Link} = Module:open(session, Context),
                do(Action, State#state{opened = true, link = Link, store = {Module, NContext}})
        end
    catch
        throw:{store, Failure} ->
            {{error, nats_gateway_kv_request:type_of(Action), Failure}, State}
    end.

needs_store({adopt, _, _}) -> true;
needs_store({claim, _}) -> false;
needs_store(Action) -> nats_gateway_kv_request:needs_store(Action).

do(account_info, State = #state{consumers = Consumers}) ->
    {{account_info, 0, map_size(Consumers)}, State};
do({stream_names, Names, Offset}, State) ->
    {{stream_names, Names, Offset}, State};
do({stream_list, Buckets, Offset}, State) ->
    {{stream_list, [stream(Bucket, State) || Bucket <- Buckets], Offset}, State};
do({stream_info, Kind, Bucket}, State) ->
    {{stream_info, Kind, stream(Bucket, State)}, State};
do({hidden, {stream_list, Buckets, Offset}}, State) ->
    {{stream_list, [hidden(Bucket, State) || Bucket <- Buckets], Offset}, State};
do({hidden, {stream_info, Kind, Bucket}}, State) ->
    {{stream_info, Kind, hidden(Bucket, State)}, State};
do({get, Way, Bucket, Which}, State) ->
    {get(Way, Bucket, Which, State), State};
do({write, Bucket, Topic, Expected, Write}, State = #state{store = {Module, Context}}) ->
    Answer =
        case Module:write(Topic, Expected, Write, Context) of
            {ok, Revision} -> {stored, Bucket, Revision};
            {error, Failure} -> {error, {publish, nats_gateway_kv_bucket:stream(Bucket)}, Failure}
        end,
    {Answer, State};
do({purge, _, _, true}, State) ->
    {{purged, 0}, State};
do({purge, _, Topic, false}, State = #state{store = {Module, Context}}) ->
    Answer =
        case Module:read([Topic], Context) of
            [none] ->
                {purged, 0};
            [{ok, _}] ->
                Delete = {delete, nats_gateway_kv_answer:deleted(<<"PURGE">>)},
                case Module:write(Topic, any, Delete, Context) of
                    {ok, _} -> {purged, 1};
                    {error, Failure} -> {error, <<"stream_purge">>, Failure}
                end
        end,
    {Answer, State};
do({create_consumer, Bucket, Consumer}, State) ->
    create_consumer(Bucket, Consumer, State);
do({consumer_info, Bucket, Name}, State) ->
    case consumer(Bucket, Name, State) of
        {ok, _, Facts} -> {{consumer, info, Facts}, State};
        gone -> {{error, <<"consumer_info">>, consumer_not_found}, State}
    end;
do({delete_consumer, Bucket, Name}, State = #state{consumers = Consumers}) ->
    case maps:take({nats_gateway_kv_bucket:stream(Bucket), Name}, Consumers) of
        {{Pid, _}, Others} ->
            ok = nats_gateway_kv_consumer:stop(Pid),
            {consumer_deleted, State#state{consumers = Others}};
        error ->
            {{error, <<"consumer_delete">>, consumer_not_found}, State}
    end;
do({consumer_names, Bucket}, State) ->
    {{consumer_names, names(Bucket, State)}, State};
do({consumer_list, Bucket}, State) ->
    Known = [consumer(Bucket, Name, State) || Name <- names(Bucket, State)],
    {{consumer_list, [Facts || {ok, _, Facts} <- Known]}, State};
do({taken, Name, Token}, State = #state{consumers = Consumers}) ->
    _ = [
        nats_gateway_kv_consumer:taken(Pid, Token)
     || {{_, Named}, {Pid, _}} <- maps:to_list(Consumers), Named =:= Name
    ],
    {none, State};
do({claim, Pid}, State = #state{client = Client}) ->
    ok = nats_gateway_kv_consumer:claim(Pid, Client),
    {none, State};
do({adopt, Pid, Topic}, State) ->
    adopt(Pid, Topic, State);
do({answer, Answer}, State) ->
    {Answer, State};
do(ignore, State) ->
    {none, State}.

names(Bucket, #state{consumers = Consumers}) ->
    Stream = nats_gateway_kv_bucket:stream(Bucket),
    lists:sort([Name || {Of, Name} <- maps:keys(Consumers), Of =:= Stream]).

consumer(Bucket, Name, #state{consumers = Consumers, leader = Leader}) ->
    case maps:find({nats_gateway_kv_bucket:stream(Bucket), Name}, Consumers) of
        {ok, {Pid, _}} ->
            case nats_gateway_kv_consumer:facts(Pid) of
                {ok, Facts} -> {ok, Pid, Facts#{leader => Leader}};
                gone -> gone
            end;
        error ->
            gone
    end.

%% A consumer with the same name is replaced: a client that has lost messages makes its own again.
create_consumer(Bucket, Consumer = #{name := Given, deliver_topic := Topic}, State) ->
    #state{client = Client, store = Store, consumers = Consumers} = State,
    Name =
        case Given of
            undefined -> binary:encode_hex(crypto:strong_rand_bytes(4));
            _ -> Given
        end,
    Key = {nats_gateway_kv_bucket:stream(Bucket), Name},
    case Consumers of
        #{Key := {Replaced, _}} -> nats_gateway_kv_consumer:stop(Replaced);
        #{} -> ok
    end,
    Others = maps:remove(Key, Consumers),
    case map_size(Others) >= State#state.max_consumers of
        true ->
            {{error, <<"consumer_create">>, too_many_consumers}, State#state{consumers = Others}};
        false ->
            Started = nats_gateway_kv_consumer:start_link(#{
                client => Client,
                identity => State#state.identity,
                store => Store,
                bucket => Bucket,
                consumer => Consumer,
                name => Name
            }),
            case Started of
                {ok, Pid} ->
                    NState = State#state{consumers = Others#{Key => {Pid, Topic}}},
                    {ok, _, Facts} = consumer(Bucket, Name, NState),
                    {{started, Pid, {consumer, create, Facts}}, NState};
                {error, {shutdown, {store, Failure}}} ->
                    {{error, <<"consumer_create">>, Failure}, State#state{consumers = Others}}
            end
    end.

%% If the client has made its watcher again, the one that has waited is of no use.
adopt(Pid, Topic, State = #state{client = Client, store = Store, consumers = Consumers}) ->
    HasRoom = map_size(Consumers) < State#state.max_consumers,
    case HasRoom andalso nats_gateway_kv_consumer:adopt(Pid, Client, Store) of
        {ok, Bucket, Name} ->
            Key = {nats_gateway_kv_bucket:stream(Bucket), Name},
            case is_map_key(Key, Consumers) of
                true ->
                    ok = nats_gateway_kv_consumer:stop(Pid),
                    {none, State};
                false ->
                    {{adopted, Pid}, State#state{consumers = Consumers#{Key => {Pid, Topic}}}}
            end;
        _ ->
            {none, State}
    end.

%% -------------------------------------------------------------------------------------------
%% Reading

stream(Bucket, State = #state{store = {Module, Context}}) ->
    {ok, Filter} = nats_gateway_kv_bucket:filter(<<">">>, Bucket),
    try Module:fold(
        Filter,
        fun(Topic, #{revision := Revision, at := At, size := Size}, Acc = {N, Bytes, Min, Max}) ->
            case nats_gateway_kv_bucket:key_of_topic(Topic, Bucket) of
                {ok, _} ->
                    This = {Revision, At},
                    {N + 1, Bytes + byte_size(Topic) + Size, first(This, Min), max(This, Max)};
                error ->
                    Acc
            end
        end,
        {0, 0, none, {0, 0}},
        Context
    ) of
        {0, 0, none, _} ->
            hidden(Bucket, State);
        {Messages, Bytes, First, Last} ->
            (hidden(Bucket, State))#{messages := Messages, bytes := Bytes, first := First, last := Last}
    catch
        %% The client may not subscribe to all of the bucket.
        throw:{store, _} -> hidden(Bucket, State)
    end.

hidden(Bucket, State = #state{store = {Module, _}, leader = Leader}) ->
    #{
        bucket => Bucket,
        where => Module:where(),
        messages => 0,
        bytes => 0,
        first => {0, 0},
        last => {0, 0},
        consumers => length(names(Bucket, State)),
        leader => Leader
    }.

first(This, none) -> This;
first(This, Other) -> min(This, Other).

get(Way, Bucket, {last, Key, Topic}, #state{store = {Module, Context}}) ->
    case Module:read([Topic], Context) of
        [{ok, Value}] -> {value, Way, Bucket, Key, Value};
        [none] -> not_found(Way)
    end;
get(Way, Bucket, {revision, Revision}, State) ->
    search(Way, Bucket, <<">">>, fun(R) -> R =:= Revision end, State);
get(Way, Bucket, {next, KeyFilter, _, Least}, State) ->
    search(Way, Bucket, KeyFilter, fun(R) -> R >= Least end, State).

%% The broker has no index of revisions, so all keys are looked at.
search(Way, Bucket, KeyFilter, IsWanted, #state{store = {Module, Context}}) ->
    {ok, Filter} = nats_gateway_kv_bucket:filter(KeyFilter, Bucket),
    Found = Module:fold(
        Filter,
        fun(Topic, #{revision := Revision}, Best) ->
            case IsWanted(Revision) andalso is_better(Revision, Best) of
                true -> better(Topic, Revision, KeyFilter, Bucket, Best);
                false -> Best
            end
        end,
        none,
        Context
    ),
    case Found of
        {_, Key, Topic} -> found(Way, Bucket, Key, Module:read([Topic], Context), IsWanted);
        none -> not_found(Way)
    end.

%% The value may have changed since.
found(Way, Bucket, Key, [{ok, Value = #{revision := Revision}}], IsWanted) ->
    case IsWanted(Revision) of
        true -> {value, Way, Bucket, Key, Value};
        false -> not_found(Way)
    end;
found(Way, _, _, [none], _) ->
    not_found(Way).

is_better(_, none) -> true;
is_better(Revision, {Other, _, _}) -> Revision < Other.

better(Topic, Revision, KeyFilter, Bucket, Best) ->
    case nats_gateway_kv_bucket:key_of_topic(Topic, Bucket) of
        {ok, Key} ->
            case nats_gateway_nif:subject_matches(KeyFilter, Key) of
                true -> {Revision, Key, Topic};
                false -> Best
            end;
        error ->
            Best
    end.

not_found(direct) -> {error, direct, message_not_found};
not_found(message) -> {error, <<"stream_msg_get">>, message_not_found}.
