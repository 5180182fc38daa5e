-module(nats_gateway_passwords_tests).

-include_lib("eunit/include/eunit.hrl").

-define(WAIT, 10000).
-define(HERE, {127, 0, 0, 1}).

%% Every test has a process of its own.
passwords_test_() ->
    {foreach, fun start/0, fun stop/1, [
        {timeout, 60, Test}
     || Test <- [
            fun right_and_wrong/0,
            fun what_was_right_is_known/0,
            fun half_of_the_cores_compute/0,
            fun addresses_take_turns/0,
            fun who_leaves_gives_up_its_turn/0,
            fun places_are_bounded/0,
            fun failures_are_told_late/0,
            fun nobody_waits_for_a_process_that_is_gone/0,
            fun its_status_shows_no_password/0
        ]
    ]}.

start() ->
    {ok, Pid} = nats_gateway_passwords:start_link(),
    true = unlink(Pid),
    Pid.

stop(Pid) ->
    Monitor = monitor(process, Pid),
    true = exit(Pid, kill),
    receive
        {'DOWN', Monitor, process, _, _} -> ok
    end.

%% Each cost takes twice as long as the one before: 4 some milliseconds at most, 12 a quarter of a
%% second or more.
hash(Password, Cost) -> nats_gateway_hashes:bcrypt(Password, Cost).

ask(Given, Hash) -> ask(Given, Hash, ?HERE).

ask(Given, Hash, Address) -> result(nats_gateway_passwords:verify(Given, Hash, Address)).

result(Request) ->
    receive
        Message ->
            case nats_gateway_passwords:result(Message, Request) of
                no_result -> result(Request);
                Result -> Result
            end
    after ?WAIT -> nothing
    end.

%% A client that sends its name with what it was told.
client(Name, Given, Hash, Address) ->
    Test = self(),
    Pid = spawn(fun() ->
        Request = nats_gateway_passwords:verify(Given, Hash, Address),
        Test ! {asked, self()},
        Test ! {Name, result(Request)}
    end),
    receive
        {asked, Pid} -> Pid
    end.

told() ->
    receive
        {Name, Result} -> {Name, Result}
    after ?WAIT -> nothing
    end.

right_and_wrong() ->
    Hash = hash(<<"w0rd">>, 4),
    ?assertEqual(right, ask(<<"w0rd">>, Hash)),
    ?assertEqual(wrong, ask(<<"word">>, Hash)),
    ?assertEqual(wrong, ask(<<>>, Hash)),
    ?assertEqual(wrong, ask(<<"w0rd">>, <<"no hash">>)).

%% It does not take a core again; a wrong one does.
what_was_right_is_known() ->
    [One, Slow] = [hash(<<"w0rd">>, Cost) || Cost <- [4, 12]],
    Other = nats_gateway_hashes:bcrypt(<<"w0rd">>, 4, 2),
    ?assertEqual(right, ask(<<"w0rd">>, One)),
    Busy = [client({guess, N}, <<"guess">>, Slow, ?HERE) || N <- lists:seq(1, 8)],
    ?assertEqual(right, ask(<<"w0rd">>, One)),
    ?assertEqual({message_queue_len, 0}, process_info(self(), message_queue_len)),
    %% of that hash only
    Waiting = client(other, <<"w0rd">>, Other, ?HERE),
    [true = exit(Pid, kill) || Pid <- Busy],
    ?assertEqual(right, wait_for(other, 0)),
    ?assertNot(is_process_alive(Waiting)).

half_of_the_cores_compute() ->
    Hash = hash(<<"w0rd">>, 12),
    Pids = [client(N, <<"guess">>, Hash, {10, 0, 0, N}) || N <- lists:seq(1, 20)],
    {running, Running} = running(),
    ?assertEqual(max(1, erlang:system_info(schedulers_online) div 2), Running),
    [true = exit(Pid, kill) || Pid <- Pids].

%% One more than the places that compute is not told yet.
running() ->
    {status, _, _, [_, _, _, _, Misc]} = sys:get_status(nats_gateway_passwords),
    [Shown] = [State || {data, [{"State", State}]} <- Misc],
    {running, maps:get(running, Shown)}.

%% However many wait at one of them.
addresses_take_turns() ->
    %% What was right once does not take a core again.
    [Hash, Other, Unknown, New] = [nats_gateway_hashes:bcrypt(<<"w0rd">>, 8, N) || N <- lists:seq(1, 4)],
    Guesses = [client({guess, N}, <<"guess">>, Hash, ?HERE) || N <- lists:seq(1, 40)],
    _ = client(right, <<"w0rd">>, Hash, {127, 0, 0, 2}),
    ?assertEqual(right, wait_for(right, 0)),
    Left = [Pid || Pid <- Guesses, is_process_alive(Pid)],
    ?assert(length(Left) > 20),
    [true = exit(Pid, kill) || Pid <- Guesses],
    %% At one address, whose passwords are asked for.
    Guessing = [client({guess, N}, <<"guess">>, Hash, ?HERE) || N <- lists:seq(1, 40)],
    _ = client(right, <<"w0rd">>, Other, ?HERE),
    ?assertEqual(right, wait_for(right, 0)),
    ?assert(length([Pid || Pid <- Guessing, is_process_alive(Pid)]) > 20),
    [true = exit(Pid, kill) || Pid <- Guessing],
    %% The same for IPv6, where a customer has a whole network.
    Six = fun(Net, Host) -> {16#2001, 16#DB8, 0, Net, 0, 0, 0, Host} end,
    More = [client({guess, N}, <<"guess">>, Hash, Six(1, N)) || N <- lists:seq(1, 40)],
    _ = client(right, <<"w0rd">>, Unknown, Six(2, 1)),
    ?assertEqual(right, wait_for(right, 0)),
    ?assert(length([Pid || Pid <- More, is_process_alive(Pid)]) > 20),
    [true = exit(Pid, kill) || Pid <- More],
    %% IPv4 at a socket of IPv6.
    Mapped = fun(Host) -> {0, 0, 0, 0, 0, 16#FFFF, 16#7F00, Host} end,
    Last = [client({guess, N}, <<"guess">>, Hash, Mapped(1)) || N <- lists:seq(1, 40)],
    _ = client(right, <<"w0rd">>, New, Mapped(2)),
    ?assertEqual(right, wait_for(right, 0)),
    ?assert(length([Pid || Pid <- Last, is_process_alive(Pid)]) > 20),
    [true = exit(Pid, kill) || Pid <- Last].

wait_for(Name, Others) ->
    case told() of
        {Name, Result} -> Result;
        {_, _} when Others < 1000 -> wait_for(Name, Others + 1);
        Other -> Other
    end.

who_leaves_gives_up_its_turn() ->
    Hash = hash(<<"w0rd">>, 12),
    Guesses = [client({guess, N}, <<"guess">>, Hash, ?HERE) || N <- lists:seq(1, 200)],
    [true = exit(Pid, kill) || Pid <- Guesses],
    %% 200 would take 50 s.
    ?assertEqual(right, ask(<<"w0rd">>, hash(<<"w0rd">>, 4))).

places_are_bounded() ->
    Hash = hash(<<"w0rd">>, 12),
    Running = max(1, erlang:system_info(schedulers_online) div 2),
    Guesses = [client({guess, N}, <<"guess">>, Hash, ?HERE) || N <- lists:seq(1, 1000 + Running)],
    ?assertEqual(busy, ask(<<"w0rd">>, Hash)),
    Last = client(last, <<"w0rd">>, hash(<<"w0rd">>, 4), {127, 0, 0, 2}),
    ?assertEqual(right, wait_for(last, 0)),
    ?assertNot(is_process_alive(Last)),
    [true = exit(Pid, kill) || Pid <- Guesses].

%% The later, the more there are; the same for all of an address, and for no other.
failures_are_told_late() ->
    Hash = hash(<<"w0rd">>, 4),
    Took = fun(Address) ->
        {Microseconds, wrong} = timer:tc(fun() -> ask(<<"guess">>, Hash, Address) end),
        Microseconds div 1000
    end,
    First = Took(?HERE),
    Later = [Took(?HERE) || _ <- lists:seq(1, 8)],
    ?assert(lists:last(Later) >= 300),
    ?assert(lists:last(Later) > First),
    Clients = [client(N, <<"guess">>, Hash, ?HERE) || N <- lists:seq(1, 60)],
    [{_, wrong} = told() || _ <- Clients],
    Longest = Took(?HERE),
    ?assert(Longest >= 1800),
    %% What clients wait for before they give up, with some reserve for a busy machine.
    ?assert(Longest < 3000),
    ?assert(Took({127, 0, 0, 2}) < 300),
    %% Who knows the password waits for no such time.
    {Right, right} = timer:tc(fun() -> ask(<<"w0rd">>, Hash) end),
    ?assert(Right div 1000 < 300).

nobody_waits_for_a_process_that_is_gone() ->
    Request = nats_gateway_passwords:verify(<<"x">>, hash(<<"w0rd">>, 12), ?HERE),
    ok = stop(whereis(nats_gateway_passwords)),
    ?assertEqual(busy, result(Request)),
    ?assertEqual(busy, ask(<<"x">>, <<"y">>)).

its_status_shows_no_password() ->
    Hash = hash(<<"w0rd-0f-ann">>, 12),
    ?assertEqual(right, ask(<<"w0rd-0f-ann">>, Hash)),
    _ = client(guess, <<"gue55">>, Hash, ?HERE),
    Status = iolist_to_binary(
        io_lib:format("~0p", [sys:get_status(nats_gateway_passwords)])
    ),
    [
        ?assertEqual(nomatch, binary:match(Status, Secret))
     || Secret <- [<<"w0rd-0f-ann">>, <<"gue55">>, Hash]
    ].
