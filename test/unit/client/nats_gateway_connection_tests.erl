%% The process of a client, where it matters what its socket and its timers do. What it says to
%% clients is in test/wire.
-module(nats_gateway_connection_tests).

-behaviour(nats_gateway_host).

-include("nats_gateway.hrl").
-include_lib("eunit/include/eunit.hrl").

-export([connect/1, ready/1, publish/3, subscribe/3, subscribe_again/3, unsubscribe/2, barrier/2]).
-export([handle_info/2, disconnect/2]).

-define(WAIT, 10000).

%% -------------------------------------------------------------------------------------------
%% A host that tells the test what it was given

%% The password is how many milliseconds the login lasts.
connect(#{config := #{test := Test}, connect := Fields}) ->
    Session = #{mountpoint => <<>>, clientid => <<"c">>},
    case Fields of
        #{pass := Ms} -> {ok, Session#{expires => binary_to_integer(Ms)}, Test};
        #{} -> {ok, Session, Test}
    end.

publish(Pubs, _, Test) ->
    Test ! {?MODULE, [element(tuple_size(Pub), Pub) || Pub <- Pubs]},
    {ok, [], Test}.

subscribe(_, _, Test) -> {ok, Test}.
subscribe_again(_, _, Test) -> {ok, [], Test}.
ready(Test) ->
    case persistent_term:get({?MODULE, behind}, false) of
        true -> {wait, Test};
        false -> ok
    end.
unsubscribe(_, Test) -> Test.
barrier(_, Test) -> {ok, Test}.
handle_info({deliver, Deliveries}, Test) -> {[{deliver, Deliveries}], Test};
handle_info(ready, Test) -> {[ready], Test};
handle_info(_, _) -> ignore.
disconnect(_, _) -> ok.

%% -------------------------------------------------------------------------------------------

%% The process, the port that it owns, and the client's.
connected(Options) -> connected(Options, #{}).

connected(Options, Settings) ->
    {ok, Listen} = nats_gateway_transport:listen({{127, 0, 0, 1}, 0}, #{}),
    {tcp, ListenSocket} = Listen,
    {ok, ListenPort} = inet:port(ListenSocket),
    {ok, Client} = gen_tcp:connect({127, 0, 0, 1}, ListenPort, [binary, {active, false}]),
    {ok, Socket = {tcp, Port}} = nats_gateway_transport:accept(Listen),
    ok = gen_tcp:close(ListenSocket),
    Config = maps:merge(nats_gateway_file:defaults(), Settings#{test => self()}),
    _ = nats_gateway_connection:publish(
        ?MODULE, maps:merge(#{host => ?MODULE, config => Config, listener => test}, Options)
    ),
    {ok, Pid} = nats_gateway_connection:start_link(Socket, ?MODULE),
    true = unlink(Pid),
    ok = nats_gateway_connection:hand_over(Socket, Pid),
    {Pid, Port, Client}.

greeted(Client) ->
    {ok, <<"INFO ", _/binary>>} = gen_tcp:recv(Client, 0, ?WAIT),
    ok = gen_tcp:send(Client, <<"CONNECT {\"verbose\":true}\r\n">>),
    {ok, <<"+OK\r\n">>} = gen_tcp:recv(Client, 0, ?WAIT),
    ok.

%% All until there is this in it.
received(Client, What) -> received(Client, What, <<>>).

received(Client, What, Before) ->
    case binary:match(Before, What) of
        nomatch ->
            {ok, Bytes} = gen_tcp:recv(Client, 0, ?WAIT),
            received(Client, What, <<Before/binary, Bytes/binary>>);
        _ ->
            Before
    end.

published() ->
    receive
        {?MODULE, Payloads} -> Payloads
    after ?WAIT -> nothing
    end.

%% The runtime may keep the signal of a monitor until the process that sends it has had its turn.
watched(Pid) ->
    Monitor = monitor(process, Pid),
    true = erlang:yield(),
    Monitor.

ended(Monitor) ->
    receive
        {'DOWN', Monitor, process, _, Reason} -> Reason
    after ?WAIT -> still_there
    end.

%% -------------------------------------------------------------------------------------------
%% A client that is gone: nothing can be sent, while what it sent before is still to come

gone() ->
    {Pid, Port, Client} = connected(#{}),
    greeted(Client),
    %% Its owner is told nothing of it.
    ok = gen_tcp:close(Port),
    ok = gen_tcp:close(Client),
    Pid ! {tcp, Port, <<"PING\r\nPUB a 1\r\n1\r\nPU">>},
    ?assertEqual([<<"1">>], published()),
    {Pid, Port, watched(Pid)}.

a_client_that_is_gone_ends_with_its_input_test() ->
    {Pid, Port, Monitor} = gone(),
    Pid ! {tcp, Port, <<"B a 1\r\n2\r\nPING\r\n">>},
    ?assertEqual([<<"2">>], published()),
    Pid ! {tcp_closed, Port},
    ?assertEqual({shutdown, client_closed}, ended(Monitor)).

%% Nobody is there who would send on.
a_client_that_is_gone_ends_when_more_input_is_asked_for_test() ->
    {Pid, Port, Monitor} = gone(),
    Pid ! {tcp_passive, Port},
    ?assertEqual({shutdown, client_closed}, ended(Monitor)).

a_client_that_is_gone_ends_anyway_test_() ->
    {timeout, 30, fun() ->
        {_, _, Monitor} = gone(),
        ?assertEqual({shutdown, client_closed}, ended(Monitor))
    end}.

%% -------------------------------------------------------------------------------------------
%% The timer of clients that do not log in

a_client_that_has_logged_in_has_no_idle_timer_test_() ->
    {timeout, 30, fun() ->
        {ok, Census} = nats_gateway_census:start_link(),
        try
            {Pid, _, Client} = connected(#{}, #{idle_timeout => 60000}),
            {ok, <<"INFO ", _/binary>>} = gen_tcp:recv(Client, 0, ?WAIT),
            %% Something that is no login, and is reported.
            ok = gen_tcp:send(Client, <<"PI">>),
            timer:sleep(500),
            ?assert(lists:member(idle, timers(Pid))),
            ok = gen_tcp:send(Client, <<"NG\r\nPING\r\n">>),
            ok = until(fun() -> not lists:member(idle, timers(Pid)) end),
            ?assert(is_process_alive(Pid))
        after
            true = unlink(Census),
            exit(Census, shutdown),
            nats_gateway_census:forget()
        end
    end}.

timers(Pid) ->
    {status, _, _, [_, _, _, _, Misc]} = sys:get_status(Pid),
    [#{timers := Timers}] = [State || {data, [{"State", State}]} <- Misc],
    Timers.

until(Condition) ->
    case Condition() of
        true ->
            ok;
        false ->
            timer:sleep(20),
            until(Condition)
    end.

%% -------------------------------------------------------------------------------------------
%% Those that are closed by somebody else

%% Before a login, after it, without a socket, and gone: only those that were there count.
a_kick_says_how_many_it_has_closed_test() ->
    {New, _, NewClient} = connected(#{}),
    {LoggedIn, _, Client} = connected(#{}),
    {Gone, _, GoneClient} = connected(#{}),
    [{ok, <<"INFO ", _/binary>>} = gen_tcp:recv(C, 0, ?WAIT) || C <- [NewClient, Client, GoneClient]],
    ok = gen_tcp:send(Client, <<"CONNECT {\"verbose\":false}\r\nPING\r\n">>),
    {ok, <<"PONG\r\n">>} = gen_tcp:recv(Client, 0, ?WAIT),
    Left = watched(Gone),
    ok = gen_tcp:close(GoneClient),
    _ = ended(Left),
    Monitors = [watched(Pid) || Pid <- [New, LoggedIn]],
    ?assertEqual(2, nats_gateway_connection:kick([New, LoggedIn, Gone], ?WAIT)),
    ?assertEqual([{shutdown, kicked}, {shutdown, kicked}], [ended(Monitor) || Monitor <- Monitors]),
    %% Without an error, as on a nats-server.
    ?assertEqual([{error, closed}, {error, closed}], [gen_tcp:recv(C, 0, ?WAIT) || C <- [NewClient, Client]]),
    ?assertEqual(0, nats_gateway_connection:kick([], ?WAIT)).

%% -------------------------------------------------------------------------------------------
%% The end of a login

logins(Client, Logins) ->
    Connects = [["CONNECT {\"verbose\":false,\"pass\":\"", Ms, "\"}\r\n"] || Ms <- Logins],
    ok = gen_tcp:send(Client, [Connects, "PING\r\n"]),
    {ok, <<"PONG\r\n">>} = gen_tcp:recv(Client, 0, ?WAIT).

%% The first end was that of another login.
a_login_ends_in_time_test() ->
    {Pid, _, Client} = connected(#{}),
    Monitor = watched(Pid),
    ok = greeted(Client),
    Begin = erlang:monotonic_time(millisecond),
    _ = logins(Client, ["500", "1000"]),
    ?assertEqual({ok, <<"-ERR 'User Authentication Expired'\r\n">>}, gen_tcp:recv(Client, 0, ?WAIT)),
    ?assert(erlang:monotonic_time(millisecond) - Begin >= 1000),
    ?assertEqual({shutdown, user_authentication_expired}, ended(Monitor)).

a_login_may_last_longer_than_a_timer_test() ->
    {Pid, _, Client} = connected(#{}),
    ok = greeted(Client),
    ?assertNot(lists:member(login, timers(Pid))),
    _ = logins(Client, ["500", "5000000000"]),
    ?assertEqual({error, timeout}, gen_tcp:recv(Client, 0, 700)),
    ?assert(lists:member(login, timers(Pid))),
    exit(Pid, kill).

%% -------------------------------------------------------------------------------------------
%% Calls of others

%% Somebody may call before there is a channel to answer.
a_call_in_the_handshake_is_ignored_test() ->
    {Pid, _, _} = connected(#{proxy_protocol => ?WAIT}),
    ?assertEqual(ignored, nats_gateway_connection:call(Pid, request)),
    exit(Pid, kill).

%% -------------------------------------------------------------------------------------------
%% Passwords that take long to compare

who_leaves_waits_for_no_password_test_() ->
    {timeout, 60, fun() ->
        {ok, Passwords} = nats_gateway_passwords:start_link(),
        Hash = nats_gateway_hashes:bcrypt(<<"w0rd">>, 12),
        {ok, Secret} = nats_gateway_login:secret(Hash),
        {ok, Login} = nats_gateway_login:new(#{methods => [{token, Secret}]}),
        %% More than compute at a time, so that the last one waits.
        Others = [
            nats_gateway_passwords:verify(<<"guess">>, Hash, {127, 0, 0, N}) || N <- lists:seq(2, 9)
        ],
        {Pid, _, Client} = connected(#{}, #{login => Login, auth_required => true}),
        {ok, <<"INFO ", _/binary>>} = gen_tcp:recv(Client, 0, ?WAIT),
        Monitor = watched(Pid),
        ok = gen_tcp:send(Client, <<"CONNECT {\"auth_token\":\"word\"}\r\n">>),
        ok = gen_tcp:close(Client),
        ?assertEqual({shutdown, client_closed}, ended(Monitor)),
        %% before its turn
        Told = [
            Request
         || Request <- Others,
            gen_server:receive_response(Request, 0) =/= timeout
        ],
        ?assert(length(Told) < length(Others)),
        ok = gen_server:stop(Passwords)
    end}.

%% -------------------------------------------------------------------------------------------
%% The memory of compression

%% Again and again, for a host that wants no reports, and long after the time for a CONNECT.
streams_are_closed_when_there_is_no_traffic_test_() ->
    {timeout, 60, fun() ->
        Settings = #{compress => true, max_frame_size => infinity, handshake_timeout => ?WAIT},
        %% Shorter than the time after which streams are closed; a busy machine needs most of it
        %% until the CONNECT is there.
        %% This client answers no PING.
        Unasked = #{idle_timeout => 4000, default_heartbeat_interval => infinity},
        {Pid, _, Client} = connected(#{websocket => Settings}, Unasked),
        %% From here on: the reason of an end that comes too early is told.
        Monitor = watched(Pid),
        1 = erlang:trace(Pid, true, [call]),
        _ = [erlang:trace_pattern({zlib, F, '_'}, true, []) || F <- [open, close]],
        ok = gen_tcp:send(Client, [
            <<"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n">>,
            <<"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n">>,
            <<"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n">>
        ]),
        _ = received(Client, <<"INFO ">>),
        ok = gen_tcp:send(Client, deflated(<<"CONNECT {\"verbose\":false}\r\n">>)),
        %% That of CONNECT is the first: INFO is not compressed, which anybody gets who connects.
        ?assertEqual([open, close], zlib(2)),
        Denied = deflated([<<"SUB $share.">>, binary:copy(<<"a">>, 100), <<" 1\r\n">>]),
        ok = gen_tcp:send(Client, Denied),
        ?assertEqual([open, open, close, close], zlib(4)),
        ok = gen_tcp:send(Client, deflated(<<"PUB a 1\r\n1\r\n">>)),
        ?assertEqual([<<"1">>], published()),
        ?assertEqual([open, close], zlib(2)),
        _ = [erlang:trace_pattern({zlib, F, '_'}, false, []) || F <- [open, close]],
        ok = gen_tcp:close(Client),
        ?assertEqual({shutdown, client_closed}, ended(Monitor))
    end}.

zlib(0) ->
    [];
zlib(Count) ->
    receive
        {trace, _, call, {zlib, Function, _}} -> [Function | zlib(Count - 1)]
    after ?WAIT -> [nothing]
    end.

deflated(Data) ->
    Z = zlib:open(),
    ok = zlib:deflateInit(Z, default, deflated, -15, 8, default),
    Flushed = iolist_to_binary(zlib:deflate(Z, Data, sync)),
    ok = zlib:close(Z),
    Size = byte_size(Flushed) - 4,
    [<<16#C2, 1:1, Size:7, 0:32>>, binary:part(Flushed, 0, Size)].

%% -------------------------------------------------------------------------------------------
%% Much for one client

%% A client of so many subscriptions on `a'.
subscribed(Sids, Options, Settings) ->
    {Pid, Port, Client} = connected(Options, Settings),
    _ = received(Client, <<"INFO ">>),
    ok = gen_tcp:send(Client, [
        <<"CONNECT {\"verbose\":false}\r\n">>,
        [["SUB a ", integer_to_list(Sid), "\r\n"] || Sid <- lists:seq(1, Sids)],
        <<"PING\r\n">>
    ]),
    _ = received(Client, <<"PONG\r\n">>),
    {Pid, Port, Client}.

deliver(Pid, Payload) ->
    Pid ! {deliver, [#delivery{key = {undefined, <<"a">>}, topic = <<"a">>, payload = Payload}]}.

%% Whoever would be sent more than max_pending is closed before it is made.
more_than_max_pending_is_not_made_test_() ->
    [
        {timeout, 30, fun() ->
            {Pid, _, _} = subscribed(Sids, #{}, #{max_pending => 4 bsl 20}),
            Monitor = watched(Pid),
            1 = erlang:trace(Pid, true, [call]),
            _ = erlang:trace_pattern({nats_gateway_transport, send, '_'}, true, [global]),
            deliver(Pid, binary:copy(<<"x">>, Size)),
            ?assertEqual({shutdown, slow_consumer}, ended(Monitor)),
            _ = erlang:trace_pattern({nats_gateway_transport, send, '_'}, false, [global]),
            Made = sizes(),
            ?assert(lists:max(Made) < 2500000),
            ?assert(lists:sum(Made) < 5000000)
        end}
     || {Sids, Size} <- [{50, 1000000}, {20000, 4000}, {20000, 1000}]
    ].

%% Of what was sent.
sizes() ->
    receive
        {trace, _, call, {nats_gateway_transport, send, [_, Data]}} -> [iolist_size(Data) | sizes()]
    after 0 -> []
    end.

%% One slice is given to the socket, whatever the bound is, and the rest is within it.
up_to_max_pending_is_sent_test_() ->
    {timeout, 30, fun() ->
        {_, _, Client} = C = subscribed(60, #{}, #{max_pending => 64 bsl 20}),
        deliver(element(1, C), binary:copy(<<"x">>, 1000000)),
        Frames = 60 * 1000000 + 60 * byte_size(<<"MSG a 1 1000000\r\n\r\n">>) + 51,
        {ok, All} = gen_tcp:recv(Client, Frames, ?WAIT),
        ?assertEqual(60, length(binary:matches(All, <<"MSG a ">>))),
        ok = gen_tcp:close(Client)
    end}.

%% What waits in the mailbox is taken to become what such a message became, for all its sids.
what_waits_in_the_mailbox_counts_test_() ->
    [
        {timeout, 30, fun() ->
            {Pid, _, Client} = subscribed(Sids, #{host => nats_gateway_host_collecting}, #{
                max_pending => 4 bsl 20
            }),
            Monitor = watched(Pid),
            true = erlang:suspend_process(Pid),
            _ = [deliver(Pid, binary:copy(<<"x">>, 100)) || _ <- lists:seq(1, Count)],
            true = erlang:resume_process(Pid),
            case IsSlow of
                true ->
                    ?assertEqual({shutdown, slow_consumer}, ended(Monitor));
                false ->
                    Size = Count * Sids * byte_size(<<"MSG a 1 100\r\n\r\n">>) + Count * Sids * 100,
                    ?assertMatch({ok, _}, gen_tcp:recv(Client, Size, ?WAIT)),
                    ok = gen_tcp:close(Client),
                    ?assertEqual({shutdown, client_closed}, ended(Monitor))
            end
        end}
     || {Sids, Count, IsSlow} <- [{1, 5000, false}, {1, 20000, true}, {9, 2500, false}, {9, 20000, true}]
    ].

%% The subjects are binaries that stay. Where OTP has no room for them, each garbage collection is one of the
%% whole heap, and the time for a SUB grows with the number of those before it.
many_subscriptions_are_not_collected_again_and_again_test_() ->
    {timeout, 60, fun() ->
        Many = whole_collections(60000),
        %% As a heap grows, it is collected now and then.
        ?assert(Many < 20, Many)
    end}.

whole_collections(Sids) ->
    {Pid, _, Client} = connected(#{}),
    %% Early: the runtime may send the signal of `monitor' a little later, and a connection that has
    %% ended by then has the reason `noproc'.
    Monitor = watched(Pid),
    greeted(Client),
    1 = erlang:trace(Pid, true, [garbage_collection]),
    Subject = binary:copy(<<"x">>, 300),
    ok = gen_tcp:send(Client, [
        <<"CONNECT {\"verbose\":false}\r\n">>,
        [["SUB ", Subject, $., Sid, $\s, Sid, "\r\n"] || N <- lists:seq(1, Sids), Sid <- [integer_to_list(N)]],
        <<"PING\r\n">>
    ]),
    {ok, <<"PONG\r\n">>} = gen_tcp:recv(Client, 6, 3 * ?WAIT),
    ok = gen_tcp:close(Client),
    {shutdown, client_closed} = ended(Monitor),
    whole_collections_of(Pid).

whole_collections_of(Pid) ->
    receive
        {trace, Pid, gc_major_start, _} -> 1 + whole_collections_of(Pid);
        {trace, Pid, _, _} -> whole_collections_of(Pid)
    after 0 -> 0
    end.

%% A client that is behind, and gone: nobody has to wait for what it would have been sent.
the_end_of_a_client_is_seen_while_it_is_behind_test_() ->
    {timeout, 30, fun() ->
        {Pid, _, Client} = subscribed(60000, #{}, #{max_pending => 1 bsl 30}),
        Monitor = watched(Pid),
        [deliver(Pid, binary:copy(<<"x">>, 1000)) || _ <- lists:seq(1, 10)],
        ok = inet:setopts(Client, [{linger, {true, 0}}]),
        ok = gen_tcp:close(Client),
        ?assertEqual({shutdown, client_closed}, ended(Monitor))
    end}.

%% -------------------------------------------------------------------------------------------
%% How much the socket sends to the mailbox

%% How many chunks have come, and how often the socket became passive.
chunks_seen(Port) -> chunks_seen(Port, {0, 0}).

chunks_seen(Port, {Chunks, Passive}) ->
    receive
        {trace, _, 'receive', {tcp, Port, _}} -> chunks_seen(Port, {Chunks + 1, Passive});
        {trace, _, 'receive', {tcp_passive, Port}} -> chunks_seen(Port, {Chunks, Passive + 1});
        {trace, _, 'receive', _} -> chunks_seen(Port, {Chunks, Passive})
    after 200 -> {Chunks, Passive}
    end.

ping_one_by_one(Client, Count) ->
    lists:foreach(
        fun(_) ->
            ok = gen_tcp:send(Client, <<"PING\r\n">>),
            {ok, <<"PONG\r\n">>} = gen_tcp:recv(Client, 0, ?WAIT)
        end,
        lists:seq(1, Count)
    ).

%% A passive socket would cost a thread more for the next chunks.
a_socket_with_little_input_stays_active_test() ->
    {Pid, Port, Client} = connected(#{}),
    greeted(Client),
    1 = erlang:trace(Pid, true, ['receive']),
    ping_one_by_one(Client, 100),
    ?assertEqual({100, 0}, chunks_seen(Port)),
    ok = gen_tcp:close(Client).

active_n_is_the_most_that_comes_in_a_row_test_() ->
    [
        {integer_to_list(N), fun() ->
            {Pid, Port, Client} = connected(#{active_n => N}),
            greeted(Client),
            1 = erlang:trace(Pid, true, ['receive']),
            ping_one_by_one(Client, 100),
            ?assertEqual({100, Passive}, chunks_seen(Port)),
            ok = gen_tcp:close(Client)
        end}
     || {N, Passive} <- [{1, 100}, {8, 0}, {31, 0}, {32, 0}]
    ].

%% Input that waits for the host stays in the socket.
a_socket_becomes_passive_when_the_host_takes_no_input_test_() ->
    {timeout, 30, fun() ->
        {Pid, Port, Client} = connected(#{}),
        greeted(Client),
        ping_one_by_one(Client, 40),
        1 = erlang:trace(Pid, true, ['receive']),
        ok = persistent_term:put({?MODULE, behind}, true),
        try
            _ = [
                begin
                    ok = gen_tcp:send(Client, <<"PUB a 1\r\n1\r\n">>),
                    timer:sleep(2)
                end
             || _ <- lists:seq(1, 100)
            ],
            {Chunks, Passive} = chunks_seen(Port),
            ?assert(Passive >= 1),
            %% One more comes when the kernel is told to keep more.
            ?assert(Chunks =< nats_gateway_transport:max_active_n() + 1)
        after
            persistent_term:erase({?MODULE, behind})
        end,
        Pid ! ready,
        ?assertEqual(100, payloads(0)),
        ok = gen_tcp:close(Client)
    end}.

payloads(100) ->
    100;
payloads(Count) ->
    case published() of
        nothing -> Count;
        Payloads -> payloads(Count + length(Payloads))
    end.

%% -------------------------------------------------------------------------------------------
%% Heartbeat

-define(INTERVAL, 400).

%% The interval is the silence before each PING, and what the client sends begins it anew.
a_ping_comes_after_the_interval_test_() ->
    {timeout, 30, fun() ->
        Start = erlang:monotonic_time(millisecond),
        {_, _, Client} = connected(#{}, #{
            default_heartbeat_interval => ?INTERVAL, heartbeat_wait_timeout => ?WAIT
        }),
        _ = received(Client, <<"INFO ">>),
        First = pinged(Client, Start),
        Second = pinged_after_pong(Client),
        Third = pinged_after_two_pongs(Client),
        %% Before it was between one interval and two.
        ?assertMatch([_, _, _], [T || T <- [First, Second, Third], T >= ?INTERVAL - 5]),
        ?assertMatch([_ | _], [T || T <- [First, Second, Third], T < ?INTERVAL + ?INTERVAL div 2]),
        ok = gen_tcp:close(Client)
    end}.

pinged_after_pong(Client) ->
    Before = erlang:monotonic_time(millisecond),
    ok = gen_tcp:send(Client, <<"PONG\r\n">>),
    pinged(Client, Before).

pinged_after_two_pongs(Client) ->
    Before = erlang:monotonic_time(millisecond),
    ok = gen_tcp:send(Client, <<"PONG\r\n">>),
    timer:sleep(?INTERVAL div 2),
    case erlang:monotonic_time(millisecond) - Before < ?INTERVAL * 3 div 4 of
        true ->
            ?assertEqual({error, timeout}, gen_tcp:recv(Client, 0, 0)),
            pinged_after_pong(Client);
        %% A busy machine has let this process sleep too long: the PING may have been sent.
        false ->
            _ = pinged(Client, Before),
            pinged_after_two_pongs(Client)
    end.

pinged(Client, Since) ->
    <<"PING\r\n">> = received(Client, <<"PING\r\n">>),
    erlang:monotonic_time(millisecond) - Since.

%% Its PONG may be behind what the host does not take yet.
a_client_whose_input_waits_is_not_stale_test_() ->
    {timeout, 60, fun() ->
        %% Before the heartbeat begins: a busy machine takes its time for it.
        Subs = binary:copy(<<"SUB a 1\r\n">>, 2000000),
        {Pid, _, Client} = connected(#{}, #{
            default_heartbeat_interval => 400, heartbeat_wait_timeout => 400
        }),
        Monitor = watched(Pid),
        ok = persistent_term:put({?MODULE, behind}, true),
        Sender = spawn(fun() -> _ = gen_tcp:send(Client, Subs) end),
        receive
            {'DOWN', Monitor, process, _, Reason} -> error(Reason)
        after 4000 -> ok
        end,
        true = persistent_term:erase({?MODULE, behind}),
        true = exit(Sender, kill),
        ok = gen_tcp:close(Client),
        Pid ! ready,
        ?assertMatch({shutdown, _}, ended(Monitor))
    end}.

%% Behind megabytes of what is not read, the end of a client is seen all the same: of these it is only the
%% messages that count.
who_leaves_is_seen_behind_its_input_test_() ->
    {timeout, 60, fun() ->
        ok = persistent_term:put({?MODULE, behind}, true),
        {Pid, _, Client} = connected(#{}),
        greeted(Client),
        Monitor = watched(Pid),
        1 = erlang:trace(Pid, true, [call]),
        _ = erlang:trace_pattern({nats_gateway_channel, leave, 1}, true, [global]),
        _ = erlang:trace_pattern({?MODULE, subscribe, 3}, true, [global]),
        %% the first one is waited for when the client leaves
        Subs = [["SUB a.", integer_to_list(N), " ", integer_to_list(N), "\r\n"] || N <- lists:seq(1, 150000)],
        ok = gen_tcp:send(Client, [Subs, "PUB a 4\r\nlast\r\n"]),
        ok = gen_tcp:close(Client),
        Called =
            receive
                {trace, _, call, {_, Function, _}} -> Function
            after ?WAIT -> nothing
            end,
        _ = erlang:trace_pattern({nats_gateway_channel, leave, 1}, false, [global]),
        true = persistent_term:erase({?MODULE, behind}),
        Pid ! ready,
        ?assertEqual([<<"last">>], published()),
        ?assertEqual({shutdown, client_closed}, ended(Monitor)),
        _ = erlang:trace_pattern({?MODULE, subscribe, 3}, false, [global]),
        ?assertEqual(leave, Called),
        ?assertEqual(0, subscribed())
    end}.

%% Keys that the host was asked for.
subscribed() ->
    receive
        {trace, _, call, {?MODULE, subscribe, _}} -> 1 + subscribed()
    after 0 -> 0
    end.

%% The PING comes after what was sent before it, which takes the client many times the wait.
a_client_that_reads_slowly_is_not_stale_test_() ->
    {timeout, 60, fun() ->
        {Pid, _, Client} = subscribed(1, #{}, #{
            default_heartbeat_interval => 200, heartbeat_wait_timeout => 300, send_timeout => ?WAIT
        }),
        ok = inet:setopts(Client, [{buffer, 65536}]),
        Monitor = watched(Pid),
        Count = 24,
        [deliver(Pid, binary:copy(<<"x">>, 1000000)) || _ <- lists:seq(1, Count)],
        All = slowly(Client, Count * (1000000 + byte_size(<<"MSG a 1 1000000\r\n\r\n">>)), []),
        ?assertEqual(Count, length(binary:matches(All, <<"MSG a ">>))),
        %% And then it is.
        Last = received(Client, <<"-ERR 'Stale Connection'\r\n">>, All),
        ?assertMatch({_, _}, binary:match(Last, <<"PING\r\n">>)),
        ?assertEqual({shutdown, stale_connection}, ended(Monitor))
    end}.

slowly(_, Left, Read) when Left =< 0 ->
    iolist_to_binary(lists:reverse(Read));
slowly(Client, Left, Read) ->
    {ok, Bytes} = gen_tcp:recv(Client, min(Left, 400000), ?WAIT),
    timer:sleep(50),
    slowly(Client, Left - byte_size(Bytes), [Bytes | Read]).

%% Who takes nothing has the time of the write deadline, and then is a slow consumer.
a_client_that_takes_nothing_is_a_slow_consumer_test_() ->
    {timeout, 30, fun() ->
        {Pid, _, _} = subscribed(1, #{}, #{
            default_heartbeat_interval => 100, heartbeat_wait_timeout => 100, send_timeout => 1000
        }),
        Monitor = watched(Pid),
        [deliver(Pid, binary:copy(<<"x">>, 1000000)) || _ <- lists:seq(1, 30)],
        ?assertEqual({shutdown, slow_consumer}, ended(Monitor))
    end}.

an_idle_client_that_does_not_answer_is_stale_in_time_test() ->
    {Pid, _, Client} = subscribed(1, #{}, #{
        default_heartbeat_interval => 100, heartbeat_wait_timeout => 300
    }),
    Monitor = watched(Pid),
    <<"PING\r\n">> = received(Client, <<"PING\r\n">>),
    Start = erlang:monotonic_time(millisecond),
    ?assertEqual({shutdown, stale_connection}, ended(Monitor)),
    ?assert(erlang:monotonic_time(millisecond) - Start >= 250).
