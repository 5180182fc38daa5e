%% A session and its watchers, with a store in a table. The test is the client's process.
-module(nats_gateway_kv_session_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_kv_store_fake, [set/4, remove/3, quietly/2]).

-compile([export_all, nowarn_export_all]).

-define(BUCKETS, #{<<"b">> => <<"x/">>}).

% Each in a process of its own, which is the client: what it started ends with it.
all_test_() ->
    {setup, fun() -> ok end, fun(_) -> ok = stop_scope() end, [
        {atom_to_list(Name), {spawn, {timeout, 30, fun() -> ?MODULE:Name() end}}}
     || Name <- [
            requests_in_order,
            by_revision,
            streams,
            initial_values_and_then_changes,
            a_subscription_that_comes_later,
            a_watcher_that_is_behind,
            expired_before_its_turn,
            from_a_revision,
            several_filters,
            without_values,
            heartbeats,
            flow_control,
            a_client_that_is_behind,
            the_end,
            unsubscribed,
            ends_with_its_client,
            refusals_of_the_store,
            too_many_requests,
            too_many_watchers,
            too_many_bytes,
            a_session_that_is_gone,
            a_client_that_comes_back,
            nothing_of_a_lost_connection_twice,
            another_login,
            a_client_that_is_back_early,
            a_busy_watcher_holds_up_nobody,
            a_client_that_stays_away,
            the_application_ends,
            too_many_that_wait,
            a_watcher_that_was_made_again,
            what_waits_is_bounded
        ]
    ]}.

start() -> start(nats_gateway_kv_store_fake:new()).

start(Store) ->
    {Store, new_session(Store, me())}.

me() -> term_to_binary(self()).

new_session(Store, Identity) ->
    _ = scope(),
    nats_gateway_kv_session:new(#{
        client => self(), identity => Identity, store => Store, leader => <<"s">>, max_consumers => 20
    }).

ask(Subject, Payload, Session) -> ask(Subject, undefined, Payload, Session).

ask(Subject, Headers, Payload, {_, Session}) ->
    {Action, _} = nats_gateway_kv_request:read(Subject, Headers, Payload, <<>>, ?BUCKETS),
    ok = nats_gateway_kv_session:submit(Action, <<"r">>, Session).

answer() ->
    receive
        {'$gen_cast', {answer, <<"r">>, undefined, Json}} ->
            {ok, Answer} = nats_gateway_nif:json_decode(Json),
            Answer;
        {'$gen_cast', {answer, <<"r">>, Headers, Payload}} ->
            {Headers, Payload}
    after 2000 -> error(no_answer)
    end.

%% What a watcher has for the client. `Has' is whether somebody has subscribed.
feed(Has) ->
    receive
        {'$gen_cast', {feed, <<"d">>, Frames, Watcher}} ->
            Watcher ! {fed, Has},
            Frames
    after 2000 -> error(no_feed)
    end.

%% Leaves out looks for a subscription, which have no frames.
frames() ->
    case feed(yes) of
        [] -> frames();
        Frames -> Frames
    end.

nothing() ->
    receive
        {'$gen_cast', {feed, _, [_ | _] = Frames, _}} -> error({unexpected, Frames})
    after 100 -> ok
    end.

seen(Frames) ->
    [
        begin
            [<<"$JS">>, <<"ACK">>, <<"KV_b">>, _, <<"1">>, Revision, Sequence, _, Pending] =
                binary:split(Reply, <<".">>, [global]),
            {Topic, binary_to_integer(Sequence), binary_to_integer(Revision), binary_to_integer(Pending), Payload}
        end
     || {Topic, {subject, <<"$JS.ACK.", _/binary>> = Reply}, _, Payload} <- Frames
    ].

watch(Config, Session) ->
    Full = maps:merge(
        #{ack_policy => none, deliver_subject => <<"d">>, deliver_policy => last_per_subject}, Config
    ),
    ask(<<"$JS.API.CONSUMER.CREATE.KV_b">>, nats_gateway_nif:json(#{config => Full}), Session),
    answer().

requests_in_order() ->
    Session = start(),
    ask(<<"$KV.b.k">>, <<"1">>, Session),
    ask(<<"$JS.API.DIRECT.GET.KV_b.$KV.b.k">>, <<>>, Session),
    ask(<<"$KV.b.k">>, <<"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: 1\r\n\r\n">>, <<"2">>, Session),
    ask(<<"$KV.b.k">>, <<"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: 100\r\n\r\n">>, <<"3">>, Session),
    ask(<<"$JS.API.STREAM.MSG.GET.KV_b">>, <<"{\"last_by_subj\":\"$KV.b.k\"}">>, Session),
    ?assertEqual(#{<<"stream">> => <<"KV_b">>, <<"seq">> => 100}, answer()),
    {Block, <<"1">>} = answer(),
    ?assertNotEqual(nomatch, binary:match(Block, <<"\r\nNats-Subject: $KV.b.k\r\nNats-Sequence: 100\r\n">>)),
    ?assertMatch(
        #{<<"error">> := #{<<"err_code">> := 10071, <<"description">> := <<"wrong last sequence: 100">>}},
        answer()
    ),
    ?assertMatch(#{<<"seq">> := 200}, answer()),
    ?assertMatch(
        #{
            <<"type">> := <<"io.nats.jetstream.api.v1.stream_msg_get_response">>,
            <<"message">> := #{<<"seq">> := 200, <<"data">> := <<"Mw==">>, <<"subject">> := <<"$KV.b.k">>}
        },
        answer()
    ),
    ask(<<"$KV.b.k">>, nats_gateway_kv_answer:deleted(<<"DEL">>), <<>>, Session),
    ?assertMatch(#{<<"seq">> := 300}, answer()),
    ask(<<"$JS.API.DIRECT.GET.KV_b.$KV.b.k">>, <<>>, Session),
    ?assertEqual({<<"NATS/1.0 404 Message Not Found\r\n\r\n">>, <<>>}, answer()).

by_revision() ->
    Session = {Store, _} = start(),
    [set(<<"x/", K>>, R, <<K>>, Store) || {K, R} <- [{$a, 5}, {$b, 7}, {$c, 6}]],
    Get = fun(Json) ->
        ask(<<"$JS.API.DIRECT.GET.KV_b">>, Json, Session),
        answer()
    end,
    ?assertMatch({_, <<"b">>}, Get(<<"{\"seq\":7}">>)),
    ?assertMatch({<<"NATS/1.0 404 ", _/binary>>, <<>>}, Get(<<"{\"seq\":8}">>)),
    ?assertMatch({_, <<"c">>}, Get(<<"{\"seq\":6,\"next_by_subj\":\"$KV.b.>\"}">>)),
    ?assertMatch({_, <<"b">>}, Get(<<"{\"seq\":6,\"next_by_subj\":\"$KV.b.b\"}">>)).

streams() ->
    Session = {Store, _} = start(),
    set(<<"x/a">>, 5, <<"12">>, Store),
    set(<<"x/b">>, 7, <<"1">>, Store),
    %% no keys of the bucket
    set(<<"x">>, 8, <<"1">>, Store),
    set(<<"y/a">>, 9, <<"1">>, Store),
    ask(<<"$JS.API.STREAM.INFO.KV_b">>, <<>>, Session),
    #{<<"state">> := State, <<"config">> := Config} = answer(),
    ?assertMatch(#{<<"messages">> := 2, <<"bytes">> := 9, <<"first_seq">> := 5, <<"last_seq">> := 7}, State),
    ?assertMatch(#{<<"name">> := <<"KV_b">>, <<"max_msgs_per_subject">> := 1, <<"allow_direct">> := true}, Config),
    ?assertNotEqual(nomatch, binary:match(maps:get(<<"description">>, Config), <<"below x/">>)),
    {Info, [Right]} = nats_gateway_kv_request:read(
        <<"$JS.API.STREAM.INFO.KV_b">>, undefined, <<>>, <<>>, ?BUCKETS
    ),
    ok = nats_gateway_kv_session:submit(
        nats_gateway_kv_request:deny(Info, Right), <<"r">>, element(2, Session)
    ),
    ?assertMatch(#{<<"state">> := #{<<"messages">> := 0, <<"last_seq">> := 0}}, answer()),
    ask(<<"$JS.API.STREAM.NAMES">>, <<>>, Session),
    ?assertMatch(#{<<"streams">> := [<<"KV_b">>], <<"total">> := 1}, answer()),
    ask(<<"$JS.API.STREAM.LIST">>, <<"{\"offset\":1}">>, Session),
    ?assertMatch(#{<<"streams">> := [], <<"total">> := 1}, answer()),
    ask(<<"$JS.API.STREAM.PURGE.KV_b">>, <<"{\"filter\":\"$KV.b.a\"}">>, Session),
    ?assertMatch(#{<<"success">> := true, <<"purged">> := 1}, answer()),
    ask(<<"$JS.API.STREAM.PURGE.KV_b">>, <<"{\"filter\":\"$KV.b.a\"}">>, Session),
    ?assertMatch(#{<<"success">> := true, <<"purged">> := 0}, answer()).

initial_values_and_then_changes() ->
    Session = {Store, _} = start(),
    set(<<"x/b">>, 2, <<"2">>, Store),
    set(<<"x/a">>, 3, <<"3">>, Store),
    set(<<"x">>, 1, <<"no key">>, Store),
    ?assertMatch(#{<<"num_pending">> := 2, <<"push_bound">> := false}, watch(#{}, Session)),
    ?assertEqual(
        [{<<"$KV/b/b">>, 1, 2, 1, <<"2">>}, {<<"$KV/b/a">>, 2, 3, 0, <<"3">>}], seen(frames())
    ),
    set(<<"x/c">>, 4, <<"4">>, Store),
    ?assertEqual([{<<"$KV/b/c">>, 3, 4, 0, <<"4">>}], seen(frames())),
    remove(<<"x/a">>, 5, Store),
    [{<<"$KV/b/a">>, _, Headers, <<>>}] = Frames = frames(),
    ?assertEqual([{<<"$KV/b/a">>, 4, 5, 0, <<>>}], seen(Frames)),
    ?assertEqual(nats_gateway_kv_answer:deleted(<<"DEL">>), Headers).

%% nats.py creates the consumer first, and then subscribes.
a_subscription_that_comes_later() ->
    Session = {Store, _} = start(),
    set(<<"x/a">>, 1, <<"1">>, Store),
    #{<<"name">> := Name} = watch(#{}, Session),
    Frames = [_] = feed(no),
    set(<<"x/b">>, 2, <<"2">>, Store),
    ?assertEqual(Frames, feed(no)),
    ask(<<"$JS.API.CONSUMER.INFO.KV_b.", Name/binary>>, <<>>, Session),
    ?assertMatch(#{<<"num_pending">> := 2, <<"delivered">> := #{<<"consumer_seq">> := 0}}, answer()),
    ?assertEqual([{<<"$KV/b/a">>, 1, 1, 0, <<"1">>}], seen(frames())),
    ?assertEqual([{<<"$KV/b/b">>, 2, 2, 0, <<"2">>}], seen(frames())).

%% A batch is on its way. Of what comes meanwhile, the client gets the first 256 changes, and then the last
%% one of each key.
a_watcher_that_is_behind() ->
    Session = {Store, _} = start(),
    _ = watch(#{deliver_policy => new}, Session),
    %% until the watcher knows that somebody has subscribed
    [] = feed(no),
    [] = feed(yes),
    set(<<"x/a">>, 1, <<"1">>, Store),
    Watcher =
        receive
            {'$gen_cast', {feed, <<"d">>, [_], Pid}} -> Pid
        end,
    [set(<<"x/a">>, R, integer_to_binary(R), Store) || R <- lists:seq(2, 300)],
    set(<<"x/b">>, 301, <<"b">>, Store),
    remove(<<"x/a">>, 302, Store),
    %% all of these have arrived
    _ = sys:get_state(Watcher),
    Watcher ! {fed, yes},
    ?assertEqual(
        [{<<"$KV/b/a">>, R, R, 259 - R, integer_to_binary(R)} || R <- lists:seq(2, 257)], seen(frames())
    ),
    ?assertEqual(
        [{<<"$KV/b/b">>, 258, 301, 1, <<"b">>}, {<<"$KV/b/a">>, 259, 302, 0, <<>>}], seen(frames())
    ),
    nothing().

%% A key that expires before its turn is reported, because the client counts.
expired_before_its_turn() ->
    Session = {Store, _} = start(),
    set(<<"x/a">>, 1, <<"1">>, Store),
    set(<<"x/b">>, 2, <<"2">>, Store),
    _ = watch(#{}, Session),
    %% the first batch has been read, but not what comes next
    [_, _] = frames(),
    Watching = {Store2, _} = start(),
    [set(<<"x/", (integer_to_binary(N))/binary>>, N, <<"v">>, Store2) || N <- lists:seq(1, 20)],
    _ = watch(#{}, Watching),
    Last = integer_to_binary(20),
    quietly({remove, <<"x/", Last/binary>>}, Store2),
    %% one value changes, and the message about that is still on its way
    quietly({set, <<"x/19">>, 30, <<"new">>}, Store2),
    All = collect(19, []),
    ?assertEqual(lists:seq(1, 18) ++ [20], [Revision || {_, _, Revision, _, _} <- All]),
    ?assertMatch({<<"$KV/b/20">>, 19, 20, 0, <<>>}, lists:last(All)),
    set(<<"x/19">>, 30, <<"new">>, Store2),
    ?assertEqual([{<<"$KV/b/19">>, 20, 30, 0, <<"new">>}], seen(frames())).

collect(N, Acc) when length(Acc) >= N -> Acc;
collect(N, Acc) -> collect(N, Acc ++ seen(frames())).

from_a_revision() ->
    Session = {Store, _} = start(),
    [set(<<"x/", (integer_to_binary(N))/binary>>, N, <<"v">>, Store) || N <- [1, 2, 3]],
    Config = #{deliver_policy => by_start_sequence, opt_start_seq => 2},
    ?assertMatch(#{<<"num_pending">> := 2}, watch(Config, Session)),
    ?assertMatch([{_, 1, 2, 1, _}, {_, 2, 3, 0, _}], seen(frames())).

several_filters() ->
    Session = {Store, _} = start(),
    [set(<<"x/", K/binary>>, R, <<"v">>, Store) || {K, R} <- [{<<"a">>, 1}, {<<"b/c">>, 2}, {<<"d">>, 3}]],
    %% they overlap, but each key is reported once
    Config = #{filter_subjects => [<<"$KV.b.a">>, <<"$KV.b.b.>">>, <<"$KV.b.b.c">>]},
    ?assertMatch(#{<<"num_pending">> := 2}, watch(Config, Session)),
    ?assertMatch([{<<"$KV/b/a">>, 1, 1, 1, _}, {<<"$KV/b/b/c">>, 2, 2, 0, _}], seen(frames())),
    set(<<"x/b/c">>, 4, <<"v">>, Store),
    set(<<"x/b">>, 5, <<"the parent">>, Store),
    ?assertMatch([{<<"$KV/b/b/c">>, 3, 4, 0, _}], seen(frames())),
    nothing().

without_values() ->
    Session = {Store, _} = start(),
    set(<<"x/a">>, 1, <<"four">>, Store),
    _ = watch(#{headers_only => true}, Session),
    ?assertMatch([{_, _, <<"NATS/1.0\r\nNats-Msg-Size: 4\r\n\r\n">>, <<>>}], frames()).

heartbeats() ->
    Session = start(),
    _ = watch(#{idle_heartbeat => 100000000}, Session),
    Pairs = [{<<"Nats-Last-Consumer">>, <<"0">>}, {<<"Nats-Last-Stream">>, <<"0">>}],
    Heartbeat = nats_gateway_kv_answer:control(heartbeat, Pairs),
    ?assertEqual([{inbox, undefined, Heartbeat, <<>>}], frames()).

%% A client that does not say how far it has read gets no more than the window.
flow_control() ->
    Session = {Store, _} = start(),
    Value = binary:copy(<<"x">>, 10000),
    [set(<<"x/", (integer_to_binary(N))/binary>>, N, Value, Store) || N <- lists:seq(1, 100)],
    _ = watch(#{flow_control => true, idle_heartbeat => 100000000}, Session),
    {First, Token} = until_stalled([]),
    ?assert(length(First) >= 6 andalso length(First) < 60),
    %% it is told once more with each heartbeat
    [{inbox, undefined, Heartbeat, <<>>}] = frames(),
    ?assertNotEqual(nomatch, binary:match(Heartbeat, <<"Nats-Consumer-Stalled: ", Token/binary>>)),
    ask(<<"$JS.FC.KV_b.none.none">>, <<>>, Session),
    ask(Token, <<>>, Session),
    [_ | _] = More = [Each || Each <- seen(frames())],
    ?assertEqual(length(First) + 1, element(2, hd(More))).

until_stalled(Acc) ->
    Frames = frames(),
    All = Acc ++ seen(Frames),
    case [Token || {inbox, {subject, Token}, _, _} <- Frames] of
        [Token] -> {All, Token};
        [] -> until_stalled(All)
    end.

a_client_that_is_behind() ->
    Session = {Store, _} = start(),
    [set(<<"x/", (integer_to_binary(N))/binary>>, N, <<"v">>, Store) || N <- lists:seq(1, 40)],
    _ = watch(#{}, Session),
    [_ | _] = feed(behind),
    %% only a look whether it still is
    [] = feed(behind),
    [] = feed(yes),
    [_ | _] = frames().

%% After its time, a consumer that nobody has subscribed to is gone; and so are those of a client.
the_end() ->
    Session = start(),
    #{<<"name">> := Name} = watch(#{inactive_threshold => 200000000}, Session),
    Info = <<"$JS.API.CONSUMER.INFO.KV_b.", Name/binary>>,
    ask(Info, <<>>, Session),
    ?assertMatch(#{<<"name">> := Name}, answer()),
    until_gone(Info, Session),
    #{<<"name">> := Other} = watch(#{}, Session),
    ask(<<"$JS.API.CONSUMER.NAMES.KV_b">>, <<>>, Session),
    ?assertMatch(#{<<"consumers">> := [Other]}, answer()),
    ask(<<"$JS.API.CONSUMER.DELETE.KV_b.", Other/binary>>, <<>>, Session),
    ?assertMatch(#{<<"success">> := true}, answer()),
    ask(<<"$JS.API.CONSUMER.DELETE.KV_b.", Other/binary>>, <<>>, Session),
    ?assertMatch(#{<<"error">> := #{<<"err_code">> := 10014}}, answer()).

until_gone(Info, Session) ->
    receive
        {'$gen_cast', {feed, <<"d">>, [], Watcher}} -> Watcher ! {fed, no}
    after 50 -> ok
    end,
    ask(Info, <<>>, Session),
    case answer() of
        #{<<"error">> := #{<<"err_code">> := 10014}} -> ok;
        #{<<"num_pending">> := _} -> until_gone(Info, Session)
    end.

%% nats.py asks for minutes, and only unsubscribes.
unsubscribed() ->
    Session = {Store, _} = start(),
    set(<<"x/a">>, 1, <<"1">>, Store),
    #{<<"name">> := Name} = watch(#{inactive_threshold => 300000000000}, Session),
    [_] = frames(),
    until_gone(<<"$JS.API.CONSUMER.INFO.KV_b.", Name/binary>>, Session).

ends_with_its_client() ->
    Test = self(),
    Client = spawn(fun() ->
        {Store, Session} = start(),
        _ = watch(#{}, {Store, Session}),
        _ = feed(yes),
        {links, Links} = process_info(element(1, Session), links),
        Test ! {started, [element(1, Session) | Links]},
        receive
            stop -> ok
        end
    end),
    Pids = receive {started, Started} -> Started end,
    ?assertMatch([_, _], Pids),
    Monitors = [monitor(process, Pid) || Pid <- Pids],
    Client ! stop,
    [receive {'DOWN', Monitor, process, _, _} -> ok after 2000 -> error(alive) end || Monitor <- Monitors].

%% A broker that refuses says so, and may let the client in later.
refusals_of_the_store() ->
    Session = {Store = {_, Table}, _} = start(),
    true = ets:insert(Table, {refuses, {failed, <<"no">>}}),
    ask(<<"$KV.b.k">>, <<"1">>, Session),
    ?assertMatch(#{<<"error">> := #{<<"code">> := 503, <<"description">> := <<"no">>}}, answer()),
    ask(<<"$JS.API.DIRECT.GET.KV_b.$KV.b.k">>, <<>>, Session),
    ?assertEqual({<<"NATS/1.0 500 no\r\n\r\n">>, <<>>}, answer()),
    ?assertMatch(#{<<"error">> := #{<<"description">> := <<"no">>}}, watch(#{}, Session)),
    true = ets:delete(Table, refuses),
    ask(<<"$KV.b.k">>, <<"1">>, Session),
    ?assertMatch(#{<<"seq">> := 100}, answer()),
    true = ets:insert(Table, {refuses, {failed, <<"no">>}}),
    %% a watcher opens the store for itself
    ?assertMatch(#{<<"error">> := #{<<"description">> := <<"no">>}}, watch(#{}, Session)),
    true = ets:delete(Table, refuses),
    set(<<"x/k">>, 500, <<"1">>, Store),
    ?assertMatch(#{<<"num_pending">> := 1}, watch(#{}, Session)).

too_many_requests() ->
    {Store, Session} = start(),
    {Pid, _} = Session,
    ok = sys:suspend(Pid),
    [ask(<<"$JS.API.INFO">>, <<>>, {Store, Session}) || _ <- lists:seq(1, 4096)],
    receive
        {'$gen_cast', _} -> error(answered)
    after 0 -> ok
    end,
    ask(<<"$KV.b.k">>, <<"1">>, {Store, Session}),
    ?assertMatch(#{<<"error">> := #{<<"code">> := 429}}, answer()),
    ok = sys:resume(Pid),
    [answer() || _ <- lists:seq(1, 4096)],
    ask(<<"$KV.b.k">>, <<"1">>, {Store, Session}),
    ?assertMatch(#{<<"seq">> := 100}, answer()).

too_many_bytes() ->
    {Store, Session = {Pid, _}} = start(),
    ok = sys:suspend(Pid),
    ask(<<"$KV.b.k">>, binary:copy(<<"x">>, 16777215), {Store, Session}),
    ask(<<"$KV.b.k">>, <<"x">>, {Store, Session}),
    ask(<<"$KV.b.k">>, <<"x">>, {Store, Session}),
    ?assertMatch(#{<<"error">> := #{<<"code">> := 429}}, answer()),
    ok = sys:resume(Pid).

too_many_watchers() ->
    Session = start(),
    [#{<<"name">> := _} = watch(#{}, Session) || _ <- lists:seq(1, 20)],
    ?assertMatch(#{<<"error">> := #{<<"err_code">> := 10026}}, watch(#{}, Session)).

a_session_that_is_gone() ->
    {_, Session = {Pid, _}} = start(),
    Monitor = monitor(process, Pid),
    ok = nats_gateway_kv_session:stop(Session),
    receive {'DOWN', Monitor, process, _, _} -> ok end,
    ?assertEqual(gone, nats_gateway_kv_session:submit(account_info, <<"r">>, Session)).

%% -------------------------------------------------------------------------------------------
%% A lost connection

scope() ->
    case whereis(nats_gateway_kv_kept) of
        undefined ->
            [#{start := {Module, Function, Args}}] = nats_gateway_kv_kept:child_specs(),
            {ok, Scope} = apply(Module, Function, Args),
            Scope;
        Scope ->
            Scope
    end.

%% The application would not start with it.
stop_scope() ->
    case whereis(nats_gateway_kv_kept) of
        undefined -> ok;
        Scope -> gen_server:stop(Scope)
    end.

lose(Session = {Pid, _}) ->
    Monitor = monitor(process, Pid),
    ok = nats_gateway_kv_session:leave([<<"d">>, <<"other">>], Session),
    receive {'DOWN', Monitor, process, _, {shutdown, client_gone}} -> ok after 2000 -> error(alive) end.

kept(Identity) -> nats_gateway_kv_kept:find(Identity, <<"d">>).

come_back(Store, Watcher) ->
    Session = new_session(Store, me()),
    ok = nats_gateway_kv_session:submit({claim, Watcher}, undefined, Session),
    {Store, Session}.

%% It goes on where it was: the numbers, what changed and was deleted meanwhile, in order.
a_client_that_comes_back() ->
    {Store, Session} = start(),
    set(<<"x/a">>, 1, <<"1">>, Store),
    #{<<"name">> := Name} =
        watch(#{inactive_threshold => 300000000000, idle_heartbeat => 5000000000}, {Store, Session}),
    ?assertMatch([{_, 1, 1, 0, _}], seen(frames())),
    lose(Session),
    [Watcher] = kept(me()),
    [] = kept(<<"somebody else">>),
    set(<<"x/b">>, 2, <<"2">>, Store),
    remove(<<"x/a">>, 3, Store),
    nothing(),
    Again = come_back(Store, Watcher),
    ?assertEqual([{<<"$KV/b/b">>, 2, 2, 1, <<"2">>}, {<<"$KV/b/a">>, 3, 3, 0, <<>>}], seen(frames())),
    set(<<"x/c">>, 4, <<"4">>, Store),
    ?assertEqual([{<<"$KV/b/c">>, 4, 4, 0, <<"4">>}], seen(frames())),
    ask(<<"$JS.API.CONSUMER.INFO.KV_b.", Name/binary>>, <<>>, Again),
    ?assertMatch(#{<<"name">> := Name, <<"delivered">> := #{<<"consumer_seq">> := 4}}, answer()),
    %% and a second time
    lose(element(2, Again)),
    [Watcher] = kept(me()),
    _ = come_back(Store, Watcher),
    %% A heartbeat tells the client at once whether it has lost something.
    [{inbox, undefined, Heartbeat, <<>>}] = frames(),
    ?assertNotEqual(nomatch, binary:match(Heartbeat, <<"Nats-Last-Consumer: 4\r\n">>)).

%% What the connection has not taken is for the next one.
nothing_of_a_lost_connection_twice() ->
    {Store, Session} = start(),
    _ = watch(#{inactive_threshold => 300000000000, flow_control => true}, {Store, Session}),
    [] = feed(yes),
    set(<<"x/a">>, 1, <<"1">>, Store),
    receive
        {'$gen_cast', {feed, <<"d">>, [_], _}} -> ok
    end,
    set(<<"x/b">>, 2, <<"2">>, Store),
    lose(Session),
    [Watcher] = kept(me()),
    _ = come_back(Store, Watcher),
    %% It may come before the subscription.
    ?assertEqual([{<<"$KV/b/a">>, 1, 1, 0, <<"1">>}], seen(feed(no))),
    ?assertEqual([{<<"$KV/b/a">>, 1, 1, 0, <<"1">>}], seen(frames())),
    ?assertEqual([{<<"$KV/b/b">>, 2, 2, 0, <<"2">>}], seen(frames())),
    nothing().

another_login() ->
    {Store, Session} = start(),
    _ = watch(#{inactive_threshold => 300000000000}, {Store, Session}),
    Monitor = monitor(process, element(1, Session)),
    ok = nats_gateway_kv_session:stop(Session),
    receive {'DOWN', Monitor, process, _, _} -> ok end,
    until_none(<<"d">>, 100),
    %% nobody had subscribed to the subject any more
    {_, Other} = start(),
    _ = watch(#{inactive_threshold => 300000000000, deliver_subject => <<"e">>}, {Store, Other}),
    [_] = nats_gateway_kv_kept:find(me(), <<"e">>),
    lose(Other),
    until_none(<<"e">>, 100).

until_none(Topic, Left) ->
    case nats_gateway_kv_kept:find(me(), Topic) of
        [] ->
            ok;
        [_ | _] when Left > 0 ->
            ok = timer:sleep(10),
            until_none(Topic, Left - 1)
    end.

a_client_that_stays_away() ->
    {Store, Session} = start(),
    _ = watch(#{inactive_threshold => 200000000}, {Store, Session}),
    lose(Session),
    [Watcher] = kept(me()),
    gone(Watcher),
    until_none(<<"d">>, 100),
    %% too late
    Again = come_back(Store, Watcher),
    ask(<<"$JS.API.CONSUMER.NAMES.KV_b">>, <<>>, Again),
    ?assertMatch(#{<<"consumers">> := []}, answer()).

gone(Watcher) ->
    Monitor = monitor(process, Watcher),
    receive {'DOWN', Monitor, process, _, _} -> ok after 2000 -> error(alive) end.

the_application_ends() ->
    Scope = scope(),
    {Store, Session} = start(),
    _ = watch(#{inactive_threshold => 300000000000}, {Store, Session}),
    lose(Session),
    [Watcher] = kept(me()),
    true = unlink(Scope),
    ok = gen_server:stop(Scope),
    gone(Watcher).

%% The limit of one client is also that of one identity.
too_many_that_wait() ->
    {Store, Session} = start(),
    [watch(#{inactive_threshold => 300000000000}, {Store, Session}) || _ <- lists:seq(1, 19)],
    lose(Session),
    {_, Other} = start(),
    [watch(#{inactive_threshold => 300000000000}, {Store, Other}) || _ <- [20, 21]],
    ?assertEqual(21, length(kept(me()))),
    lose(Other),
    ?assertEqual(20, length(kept(me()))),
    Kept = nats_gateway_kv_kept:enter(<<"nobody">>, <<"d">>),
    ?assertEqual(full, nats_gateway_kv_kept:keep(Kept, 0)),
    ?assertEqual(ok, nats_gateway_kv_kept:keep(Kept, 1)).

%% The client may be there again before the end of its connection is seen.
a_client_that_is_back_early() ->
    {Store, Session} = start(),
    _ = watch(#{deliver_policy => new, inactive_threshold => 300000000000}, {Store, Session}),
    [] = feed(yes),
    [Watcher] = kept(me()),
    Test = self(),
    Client = spawn_link(fun() ->
        Next = new_session(Store, term_to_binary(Test)),
        ok = nats_gateway_kv_session:submit({claim, Watcher}, undefined, Next),
        _ = sys:get_state(element(1, Next)),
        Test ! asked,
        Test ! {seen, seen(frames())},
        receive stop -> ok end
    end),
    receive asked -> ok end,
    %% It is still that of the first connection.
    set(<<"x/a">>, 1, <<"1">>, Store),
    ?assertMatch([{_, 1, 1, 0, _}], seen(frames())),
    lose(Session),
    set(<<"x/b">>, 2, <<"2">>, Store),
    receive {seen, Seen} -> ?assertMatch([{<<"$KV/b/b">>, 2, 2, 0, _}], Seen) after 2000 -> error(nothing) end,
    Client ! stop.

%% Neither the client that comes for it, nor what that asks meanwhile.
a_busy_watcher_holds_up_nobody() ->
    {Store, Session} = start(),
    _ = watch(#{inactive_threshold => 300000000000}, {Store, Session}),
    lose(Session),
    [Watcher] = kept(me()),
    ok = sys:suspend(Watcher),
    ok = nats_gateway_kv_consumer:ask_for_filters(Watcher),
    Again = come_back(Store, Watcher),
    ask(<<"$JS.API.CONSUMER.NAMES.KV_b">>, <<>>, Again),
    ?assertMatch(#{<<"consumers">> := []}, answer()),
    ok = sys:resume(Watcher),
    receive
        {nats_gateway_kv_consumer, filters, Watcher, <<"d">>, Filters} -> ?assertEqual([<<"x/#">>], Filters)
    after 2000 -> error(nothing)
    end,
    set(<<"x/a">>, 1, <<"1">>, Store),
    ?assertMatch([{_, 1, 1, 0, _}], seen(frames())).

a_watcher_that_was_made_again() ->
    {Store, Session} = start(),
    Config = #{inactive_threshold => 300000000000, name => <<"w">>},
    _ = watch(Config, {Store, Session}),
    lose(Session),
    [Watcher] = kept(me()),
    Again = {_, Next} = {Store, new_session(Store, me())},
    #{<<"name">> := <<"w">>} = watch(Config, Again),
    ok = nats_gateway_kv_session:submit({claim, Watcher}, undefined, Next),
    gone(Watcher),
    ask(<<"$JS.API.CONSUMER.NAMES.KV_b">>, <<>>, Again),
    ?assertMatch(#{<<"consumers">> := [<<"w">>]}, answer()).

%% As for a client that is slow: 256 changes, and then the last one of each key.
what_waits_is_bounded() ->
    {Store, Session} = start(),
    _ = watch(#{deliver_policy => new, inactive_threshold => 300000000000}, {Store, Session}),
    [] = feed(yes),
    lose(Session),
    [Watcher] = kept(me()),
    Value = binary:copy(<<"v">>, 100),
    [set(<<"x/", (integer_to_binary(R rem 10))/binary>>, R, Value, Store) || R <- lists:seq(1, 5000)],
    _ = sys:get_state(Watcher),
    _ = come_back(Store, Watcher),
    All = collect(266, []),
    ?assertEqual(lists:seq(1, 256) ++ lists:seq(4991, 5000), [Revision || {_, _, Revision, _, _} <- All]),
    ?assertEqual(lists:seq(1, 266), [Sequence || {_, Sequence, _, _, _} <- All]),
    nothing().
