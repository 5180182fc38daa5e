-module(nats_gateway_emqx_stored_tests).

-include_lib("eunit/include/eunit.hrl").

%% For the modules of EMQX in here
-export([update/1, defaults/0]).

%% Of `w0rd', cost 4.
-define(HASH, <<"$2a$04$JUIzNcqxj1tTtswnN1a6rOwYU7ysPtDI2t2MvR0L5NgENKQzHf/9y">>).

%% The keys that decide who is let in, and a login.
-define(OLDER, #{
    <<"internal_authn">> => [<<"token">>],
    <<"peer_cert_as_username">> => <<"disabled">>,
    <<"token">> => ?HASH,
    <<"websocket_same_origin">> => false
}).

stored_test_() ->
    {foreach, fun load/0, fun unload/1, [
        fun a_start_adds_the_keys_that_are_missing/0,
        fun settings_with_all_keys_are_not_written/0,
        fun settings_that_are_not_valid_are_left/0,
        fun settings_that_were_cut_are_left/0,
        fun a_change_since_they_were_read_is_not_overwritten/0,
        fun a_change_waits_for_the_start_and_comes_after_it/0,
        fun the_start_waits_for_a_change_that_is_being_written/0,
        fun a_start_goes_on_where_nothing_can_be_written/0,
        fun a_change_that_lacks_keys_is_refused/0,
        fun settings_that_were_found_may_lack_keys/0
    ]}.

%% What EMQX does with settings of a plugin, in one table.
load() ->
    ?MODULE = ets:new(?MODULE, [named_table, public]),
    _ = nats_gateway_fake_emqx:load(emqx_plugins, [
        "get_config(_, Default) ->"
        " case ets:lookup(nats_gateway_emqx_stored_tests, stored) of"
        " [{_, Stored}] -> Stored; [] -> Default end.",
        "update_config(_, New) -> nats_gateway_emqx_stored_tests:update(New)."
    ]),
    _ = nats_gateway_fake_emqx:load(hocon, [
        "load(_) -> {ok, nats_gateway_emqx_stored_tests:defaults()}."
    ]),
    ok = nats_gateway_nif_loader:acquire().

unload(_) ->
    ok = nats_gateway_fake_emqx:unload([emqx_plugins, hocon]),
    ok = nats_gateway_nif_loader:release(),
    {module, _} = code:ensure_loaded(nats_gateway_nif),
    _ = persistent_term:erase(nats_gateway_emqx_stored),
    _ = persistent_term:erase(nats_gateway_emqx_takeover),
    ets:delete(?MODULE).


update(New) ->
    run(before_the_plugin_is_asked),
    case nats_gateway_app:on_config_changed(stored(), New) of
        ok ->
            run(before_it_is_written),
            store(New);
        {error, Reason} ->
            {error, Reason}
    end.

defaults() -> nats_gateway_fake_emqx:page_defaults().

run(Point) -> [Fun() || {_, Fun} <- ets:take(?MODULE, Point)].

store(Settings) ->
    true = ets:insert(?MODULE, [{stored, Settings}, {written, true}]),
    ok.

stored() -> ets:lookup_element(?MODULE, stored, 2).

found(Settings) -> true = ets:insert(?MODULE, {stored, Settings}).

is_written() -> ets:member(?MODULE, written).

in_between(Point, Fun) -> true = ets:insert(?MODULE, {Point, Fun}).

a_start_adds_the_keys_that_are_missing() ->
    found(?OLDER),
    ok = nats_gateway_emqx_stored:complete(),
    ?assertEqual(maps:merge(defaults(), ?OLDER), stored()),
    ?assertEqual(lists:sort(nats_gateway_emqx_page:keys()), lists:sort(maps:keys(stored()))),
    %% a change of the page is one of the page again
    ?assertEqual(ok, update((stored())#{<<"max_subscriptions">> := 7})).

settings_with_all_keys_are_not_written() ->
    found(defaults()),
    ok = nats_gateway_emqx_stored:complete(),
    ?assertNot(is_written()).

settings_that_are_not_valid_are_left() ->
    Stored = ?OLDER#{<<"max_subscriptions">> => -1},
    found(Stored),
    ok = nats_gateway_emqx_stored:complete(),
    ?assertNot(is_written()).

settings_that_were_cut_are_left() ->
    found(maps:remove(<<"websocket_same_origin">>, ?OLDER)),
    ok = nats_gateway_emqx_stored:complete(),
    ?assertNot(is_written()).

a_change_since_they_were_read_is_not_overwritten() ->
    Changed = (defaults())#{<<"max_subscriptions">> := 7},
    found(?OLDER),
    in_between(before_the_plugin_is_asked, fun() -> found(Changed) end),
    ok = nats_gateway_emqx_stored:complete(),
    ?assertEqual(Changed, stored()),
    ?assertNot(is_written()).

a_change_waits_for_the_start_and_comes_after_it() ->
    Self = self(),
    Changed = (defaults())#{<<"max_subscriptions">> := 7},
    found(?OLDER),
    in_between(before_it_is_written, fun() ->
        _ = spawn_link(fun() -> Self ! {changed, update(Changed)} end),
        %% It would have been written by now.
        timer:sleep(300)
    end),
    ok = nats_gateway_emqx_stored:complete(),
    ?assertEqual({changed, ok}, receive Changes -> Changes after 5000 -> none end),
    ?assertEqual(Changed, stored()).

the_start_waits_for_a_change_that_is_being_written() ->
    Self = self(),
    Changed = (defaults())#{<<"max_subscriptions">> := 7},
    found(?OLDER),
    in_between(before_it_is_written, fun() ->
        Self ! being_written,
        timer:sleep(300)
    end),
    _ = spawn_link(fun() -> ok = update(Changed) end),
    receive being_written -> ok after 5000 -> error(not_written) end,
    ok = nats_gateway_emqx_stored:complete(),
    ?assertEqual(Changed, stored()).

a_start_goes_on_where_nothing_can_be_written() ->
    found(?OLDER),
    in_between(before_it_is_written, fun() -> error(enospc) end),
    ?assertEqual(ok, nats_gateway_emqx_stored:complete()),
    ?assertEqual(?OLDER, stored()),
    in_between(before_the_plugin_is_asked, fun() -> error(no_such_plugin) end),
    ?assertEqual(ok, nats_gateway_emqx_stored:complete()).

-define(HOW, ": must be there, because a change replaces all settings. Send every key, as GET returns them").

a_change_that_lacks_keys_is_refused() ->
    found(defaults()),
    [
        ?assertEqual({error, <<Key/binary, ?HOW>>}, update(maps:remove(Key, defaults())))
     || Key <- nats_gateway_emqx_page:keys()
    ],
    ?assertEqual(
        {error, <<"drain_time, token", ?HOW>>},
        update(maps:without([<<"token">>, <<"drain_time">>], defaults()))
    ),
    ?assertNot(is_written()).

%% EMQX tells of them before it knows any others, and stores them whatever the answer is.
settings_that_were_found_may_lack_keys() ->
    ?assertEqual(ok, nats_gateway_app:on_config_changed(#{}, ?OLDER)).
